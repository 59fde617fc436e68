"""One request of questions at an actor, from asking to the last answer; whatever happens, nothing of it stays there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from gpu_actor.contract.errors import ClusterUnavailableError
from gpu_actor.contract.questions import Answer, AskRequest
from orchestrator.endpoint.errors import BAD_REQUEST, FAULT, NOT_FOUND, TOO_MANY, RequestError
from orchestrator.endpoint.protocol import Orchestrator

_POLL_SECONDS = 0.05
_FAULTS = {  # by the names of the classes
    "DataError": (BAD_REQUEST, None),
    "UnfitDataError": (BAD_REQUEST, None),
    "TooLongError": (BAD_REQUEST, "context_length_exceeded"),
    "AdapterError": (NOT_FOUND, "model_not_found"),
}


@dataclass(frozen=True)
class _Place:
    """Where a request is answered."""

    actor: str
    request_id: str


class AnswerWindow:
    """The answers that are being made for clients of the door: no more than some at a time."""

    def __init__(self, orchestrator: Orchestrator, most: int) -> None:
        """None yet.

        Args:
            orchestrator: Whose actors answer.
            most: Requests at a time.
        """
        self._orchestrator, self._most, self._open = orchestrator, most, 0
        self._leaving: set[asyncio.Task[None]] = set()

    async def answers(self, request: AskRequest) -> AsyncGenerator[Sequence[Answer], None]:
        """The answers as far as they are made, again and again until all are; leave it and they are dropped.

        Args:
            request: To one answerer.

        Raises:
            RequestError: Too much is asked at a time, or an answer cannot be made.
            ClusterUnavailableError: No actor can answer.
        """
        if self._open >= self._most:
            raise RequestError(TOO_MANY, f"{self._most} requests are being answered already; try again in a while")
        self._open += 1
        place: _Place | None = None
        try:
            place = await self._ask(request)
            while True:
                found = await self._orchestrator.answers(place.actor, place.request_id)
                if found is not None:
                    _raise_fault(found)
                    yield found
                    if all(answer.finish_reason is not None for answer in found):
                        return
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            self._open -= 1
            if place is not None:
                self._withdraw(place)

    async def _ask(self, request: AskRequest) -> _Place:
        """Let an actor begin; a client that leaves meanwhile leaves nothing behind."""
        asking = asyncio.ensure_future(self._orchestrator.ask(request.model_dump()))
        try:
            (part,) = await asyncio.shield(asking)
        except asyncio.CancelledError:
            asking.add_done_callback(self._withdraw_asked)
            raise
        if part["actor"] is None:
            raise ClusterUnavailableError(
                f"no actor hosts {request.base_model} now, and actors alone answer here: one hosts it while jobs on it "
                "train, or if the cluster file says so; `loray ask` on the orchestrator's machine loads it by itself"
            )
        return _Place(part["actor"], part["request"]["request_id"])

    def _withdraw_asked(self, asking: asyncio.Future[list[dict[str, object]]]) -> None:
        if asking.cancelled() or asking.exception() is not None:
            return
        for part in asking.result():
            if part["actor"] is not None:
                self._withdraw(_Place(part["actor"], part["request"]["request_id"]))  # type: ignore[arg-type,index]

    def _withdraw(self, place: _Place) -> None:
        """In a task of its own: whoever left is being cancelled."""
        task = asyncio.ensure_future(self._drop(place))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _drop(self, place: _Place) -> None:
        with contextlib.suppress(ClusterUnavailableError):
            await self._orchestrator.withdraw(place.actor, place.request_id)


def _raise_fault(found: Sequence[Answer]) -> None:
    for answer in found:
        if answer.error is not None:
            status, code = _FAULTS.get(answer.error_type or "", (FAULT, None))
            raise RequestError(status, answer.error, code=code)
