"""Questions to actors: who of them answers, and the answers as far as they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpu_actor.contract.config import is_template_path
from gpu_actor.contract.errors import AdapterError
from gpu_actor.contract.questions import Answer, AskRequest
from gpu_actor.paths.roots import outside
from orchestrator.jobs.states import JobState

if TYPE_CHECKING:
    from orchestrator.cluster.fleet import Fleet
    from orchestrator.store.store import Store


@dataclass(frozen=True)
class Part:
    """The answerers of a request that answer in one place.

    Attributes:
        actor: Name of the actor; None: no actor hosts the base model, so a local process answers.
        request: Theirs alone, under an id of its own.
        numbers: Their places among all answerers.
    """

    actor: str | None
    request: AskRequest
    numbers: tuple[int, ...]


def check_reach(request: AskRequest, roots: Sequence[str]) -> None:
    """Check that nothing is read for a request from outside the allowed folders: who asks names the folders.

    Args:
        request: What is asked.
        roots: As in `outside`.

    Raises:
        AdapterError: A folder or a template lies elsewhere.
    """
    for who in request.answerers:
        template = who.chat_template if who.chat_template and is_template_path(who.chat_template) else None
        for path in (who.folder, template):
            if path is not None and (problem := outside(path, roots)):
                raise AdapterError(f"{who.name}: {problem}")


def divide(request: AskRequest, trains: Mapping[str, str], hosts: tuple[str, ...]) -> list[Part]:
    """Divide a request among the actors: the one that trains a job has its newest step, any host may answer the others.

    Args:
        request: Of one base model.
        trains: Actor by id of the jobs that it trains.
        hosts: The actors that are ready and host the base model.
    """
    at_home = [trains.get(who.job_id) if who.job_id is not None else None for who in request.answerers]
    at_home = [actor if actor in hosts else None for actor in at_home]
    # who could answer anywhere joins an actor that answers anyway
    anywhere = next((actor for actor in at_home if actor is not None), hosts[0] if hosts else None)
    chosen = [actor or anywhere for actor in at_home]
    parts = []
    for place, actor in enumerate(dict.fromkeys(chosen)):
        numbers = tuple(number for number, one in enumerate(chosen) if one == actor)
        fields = {
            "request_id": f"{request.request_id}-{place}",
            "answerers": tuple(request.answerers[number] for number in numbers),
        }
        parts.append(Part(actor, request.model_copy(update=fields), numbers))
    return parts


class Questions:
    """What is asked of the actors of one orchestrator."""

    def __init__(self, store: Store, fleet: Fleet, allowed_roots: Sequence[str]) -> None:
        self._store, self._fleet, self._roots = store, fleet, allowed_roots

    async def ask(self, request: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Let actors begin to answer a request; see `Controller.ask`."""
        whole = AskRequest.model_validate(request)
        check_reach(whole, self._roots)
        trains = {job.id: job.actor for job in self._store.jobs([JobState.RUNNING]) if job.actor is not None}
        parts = divide(whole, trains, self._fleet.hosts(whole.base_model))
        for part in parts:
            if part.actor is not None:
                await self._fleet.ask(part.actor, part.request)
        return [{"actor": part.actor, "request": part.request.model_dump(), "numbers": part.numbers} for part in parts]

    async def answers(self, actor: str, request_id: str) -> list[Answer] | None:
        """The answers of an actor to a request as far as they are made; None: it has not begun."""
        return await self._fleet.answers(actor, request_id)

    async def withdraw(self, actor: str, request_id: str) -> None:
        """Drop a request with its answers."""
        await self._fleet.withdraw(actor, request_id)
