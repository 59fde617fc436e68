"""Answers between shared batches: they take at most their share of the time from the jobs in training."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from gpu_actor.contract.questions import ANSWERING_SHARE, Answer, AskRequest
from gpu_actor.generation.desk import AnswerDesk
from gpu_actor.model.base_model import BaseModel
from gpu_actor.training.trainer import CoTrainer

# Keys and values of a token are a small part of what its forward and backward keep in training.
_TOKENS_PER_BUDGET = 2


class Answering:
    """The desk of an actor; only the training thread may open and go on."""

    def __init__(self, base: BaseModel, trainer: CoTrainer, tokenizer: Callable[[], Any]) -> None:
        """Nothing is asked yet.

        Args:
            base: The base model.
            trainer: Of the same base; its tenants answer as they are.
            tokenizer: Gives a tokenizer that no other thread uses.
        """
        self._trainer = trainer
        self._desk = AnswerDesk(base, tokenizer, _TOKENS_PER_BUDGET * trainer.token_budget, self._room)
        self._credit = 0.0  # seconds that answers may take before the next shared batch; debts too
        self._guest = contextlib.ExitStack()
        self._is_guest = False

    @property
    def idle(self) -> bool:
        """Whether nothing is being answered."""
        return self._desk.idle

    @property
    def open_requests(self) -> int:
        """Requests whose answers are being made, or wait to be fetched."""
        return self._desk.open_requests

    @property
    def generated_tokens(self) -> int:
        """Tokens of all answers so far."""
        return self._desk.generated_tokens

    def answers(self, request_id: str) -> list[Answer] | None:
        """The answers to a request as far as they are made; None: it is not open. Any thread may ask."""
        return self._desk.answers(request_id)

    def open(self, request: AskRequest, lacking: Mapping[int, Exception] | None = None) -> None:
        """Begin to answer, by copies of the adapters as they are now; see `AnswerDesk.open`."""
        self._timed(lambda: self._desk.open(request, self._trainer.snapshot, lacking))

    def withdraw(self, request_id: str) -> None:
        """Drop a request with its answers."""
        self._desk.withdraw(request_id)
        self._mark()

    def _room(self) -> float:
        """Bytes that training, at its highest so far, has left of the actor's limit: answers wait for more."""
        meter = self._trainer.meter
        limit = self._trainer.memory_limit
        return math.inf if limit is None else limit - (meter.highest_alone or meter.memory.used())

    def after_batch(self, seconds: float) -> None:
        """Go on answering, as long as the shared batch that took `seconds` pays for.

        Raises:
            Exception: The answers cannot be made; all that were open say so.
        """
        self._credit += seconds * ANSWERING_SHARE / (1 - ANSWERING_SHARE)
        try:
            if self._trainer.idle:
                self._credit = 0.0
                self._step()
            while self._credit > 0 and not self.idle:
                self._step()
        finally:
            self._credit = min(self._credit, 0.0)  # nobody saves up while nothing is asked
            self._mark()

    def _step(self) -> None:
        self._mark()
        self._timed(self._desk.step)

    def _timed(self, work: Callable[[], None]) -> None:
        started = time.monotonic()
        try:
            work()
        finally:
            self._credit -= time.monotonic() - started

    def _mark(self) -> None:
        """While keys and values lie on the device, what a shared batch takes by itself cannot be told."""
        if self.idle and self._is_guest:
            self._guest.close()
        elif not self.idle and not self._is_guest:
            self._guest.enter_context(self._trainer.meter.disturbed())
        self._is_guest = not self.idle
