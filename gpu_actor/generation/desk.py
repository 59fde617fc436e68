"""Where questions come in and answers go out: requests of many clients, answered by one generator."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpu_actor.adapters.peft_files import read_adapter
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.contract.errors import LorayError
from gpu_actor.contract.messages import one_line
from gpu_actor.contract.questions import Answer, Answerer, AskRequest, Question, Sampling
from gpu_actor.generation.generator import MOST_TOKENS, Generator, Room
from gpu_actor.generation.prompts import end_tokens, prompt_of, shown
from gpu_actor.generation.reply import Reply
from gpu_actor.generation.saved_copies import on_this_machine
from gpu_actor.generation.saved_steps import saved_step
from gpu_actor.model.base_model import BaseModel

logger = logging.getLogger(__name__)

_UNASKED_SECONDS = 60.0  # after which nobody waits for an answer any more

Snapshot = tuple[AdapterWeights, int, int]
"""A copy of an adapter in training, the step that it is of, and the steps of the job."""
LiveAdapter = Callable[[str], Snapshot | None]


@dataclass
class _Line:
    """One answer; `reply` is None as long as it is not begun, and where it cannot be."""

    who: Answerer
    question: Question
    sampling: Sampling
    which: str = ""
    reply: Reply | None = None
    error: Exception | None = None

    def answer(self) -> Answer:
        name, question = self.who.name, shown(self.question)
        if self.error is not None:
            text = "" if self.reply is None else self.reply.text
            kind = type(self.error).__name__
            return Answer(
                name, question, self.which, text, finish_reason="error", error=one_line(self.error), error_type=kind
            )
        if self.reply is None:
            return Answer(name, question, self.which)
        # before the tokens: other threads ask, and what is finished must be whole
        finish_reason = self.reply.finish_reason
        return Answer(
            name,
            question,
            self.which,
            self.reply.text,
            tuple(self.reply.log_probabilities),
            finish_reason,
            prompt_tokens=len(self.reply.prompt),
            tokens=tuple(self.reply.noted),
            prompt=tuple(self.reply.noted_prompt),
        )


@dataclass
class _Open:
    """One request."""

    lines: list[_Line]
    asked_at: float = field(default_factory=time.monotonic)


class AnswerDesk:
    """Answers requests on one base model.

    One thread steps and opens; any thread may ask for answers.

    Attributes:
        generated_tokens: Of all answers so far.
    """

    def __init__(
        self, base: BaseModel, tokenizer: Callable[[], Any], most_tokens: int = MOST_TOKENS, room: Room | None = None
    ) -> None:
        """Nothing is asked yet.

        Args:
            base: The base model.
            tokenizer: Gives its tokenizer.
            most_tokens: As of `Generator`.
            room: As of `Generator`.
        """
        self._base, self._tokenizer, self._most_tokens, self._room = base, tokenizer, most_tokens, room
        self._generator: Generator | None = None  # made for the first question
        self._open: dict[str, _Open] = {}
        self.generated_tokens = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is being answered."""
        return self._generator is None or self._generator.idle

    @property
    def open_requests(self) -> int:
        """Requests whose answers are being made, or wait to be fetched."""
        return len(self._open)

    def answers(self, request_id: str) -> list[Answer] | None:
        """The answers to a request as far as they are made, by question, answerer and choice; None: it is unknown."""
        opened = self._open.get(request_id)
        if opened is None:
            return None
        opened.asked_at = time.monotonic()
        return [line.answer() for line in opened.lines]

    def open(self, request: AskRequest, live: LiveAdapter, lacking: Mapping[int, Exception] | None = None) -> None:
        """Begin to answer a request, by the adapters as they are now.

        Args:
            request: Of which a second call changes nothing.
            live: Gives a copy of an adapter in training by its job's id.
            lacking: Why answerers have no adapter, by their numbers.
        """
        if request.request_id in self._open:
            return
        lines = [
            _Line(who, question, sampling)
            for question in request.questions
            for who in request.answerers
            for sampling in _choices(request)
        ]
        self._open[request.request_id] = _Open(lines)
        try:
            if self._generator is None:
                self._generator = Generator(self._base, self._most_tokens, self._room)
            tokenizer = self._tokenizer()
        except LorayError as error:
            _fail(lines, error)
            return
        for number, who in enumerate(request.answerers):
            theirs = [line for line in lines if line.who is who]
            if lacking and number in lacking:
                _fail(theirs, lacking[number])
                continue
            try:
                weights, which = self._adapter(who, live)
                for line in theirs:
                    line.which = which
                    self._ask(self._generator, request, line, weights, tokenizer)
            except (LorayError, OSError) as error:
                self._generator.drop([line.reply for line in theirs if line.reply is not None])
                _fail(theirs, error)

    def _ask(
        self, generator: Generator, request: AskRequest, line: _Line, weights: AdapterWeights | None, tokenizer: Any
    ) -> None:
        known = self._base.description.vocab_size
        reply = Reply(
            weights,
            prompt_of(tokenizer, line.question, request.system, line.who.chat_template, known),
            line.sampling,
            end_tokens(self._base, tokenizer),
            lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True),
            likeliest=request.likeliest,
            score_prompt=request.score_prompt,
            name_of=lambda token: tokenizer.decode([token]),
        )
        generator.add(reply)
        line.reply = reply

    def _adapter(self, who: Answerer, live: LiveAdapter) -> tuple[AdapterWeights | None, str]:
        if who.folder is None:
            return None, ""
        found = live(who.job_id) if who.job_id is not None and who.step == "latest" else None
        if found is not None:
            weights, step, total = found
            return weights, f"step {step} of {total}"
        folder, saved = saved_step(*on_this_machine(who.folder, who.step))
        of = f" of {who.total_steps}" if who.total_steps else ""
        return read_adapter(folder, self._base.new_adapter), "finished" if saved is None else f"step {saved}{of}"

    def step(self) -> None:
        """The next token of the answers, or their first one."""
        if self._generator is None:
            return
        try:
            self.generated_tokens += len(self._generator.step())
        except Exception as error:
            logger.exception("answers could not be made")
            self._give_up(error)
            raise
        self._clear()

    def withdraw(self, request_id: str) -> None:
        """Drop a request with its answers, made or in the making."""
        opened = self._open.pop(request_id, None)
        if opened is not None and self._generator is not None:
            self._generator.drop([line.reply for line in opened.lines if line.reply is not None])

    def _give_up(self, error: Exception) -> None:
        """What the generator holds is in no state to go on."""
        self._generator = None
        for opened in self._open.values():
            _fail([line for line in opened.lines if line.answer().finish_reason is None], error)

    def _clear(self) -> None:
        """Forget requests whose answers nobody asks for any more."""
        now = time.monotonic()
        for request_id, opened in list(self._open.items()):
            if now - opened.asked_at > _UNASKED_SECONDS:
                self.withdraw(request_id)


def _choices(request: AskRequest) -> list[Sampling]:
    """How each answer to one question is chosen: each with the next seed."""
    first = request.sampling
    return [first.model_copy(update={"seed": (first.seed + i) % 2**63}) for i in range(request.choices)]


def _fail(lines: list[_Line], error: Exception) -> None:
    for line in lines:
        line.error = error
