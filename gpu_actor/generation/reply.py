"""One answer in the making: its tokens, its text, and why it ended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.batch.shared_batch import Tokens
from gpu_actor.contract.questions import Sampling

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer makes of half a character
FinishReason = Literal["stop", "length"]


@dataclass(eq=False)
class Reply:
    """The answer of one adapter to one prompt.

    Attributes:
        weights: Who answers; None is the bare base model.
        prompt: Token ids [n], n >= 1.
        sampling: How tokens are chosen.
        end_tokens: Token ids that end the answer, and are left out of it.
        text_of: The text of token ids; without it stop strings are not looked for.
        tokens: The answer so far.
        log_probabilities: Of each of its tokens.
        text: Of the answer so far; what may still become part of a stop string or of a character is left out.
        finish_reason: `stop`: by a token or a text that ends it; `length`: it has all the tokens that it may have;
            None: it goes on.
    """

    weights: AdapterWeights | None
    prompt: Tokens
    sampling: Sampling
    end_tokens: Collection[int] = ()
    text_of: Callable[[Sequence[int]], str] | None = None
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None

    def add(self, token: int, log_probability: float, *, last: bool) -> None:
        """Take in the next token; `last`: there is no room for another one."""
        if token in self.end_tokens:
            self.finish_reason = "stop"
        else:
            self.tokens.append(token)
            self.log_probabilities.append(log_probability)
            if last or len(self.tokens) >= self.sampling.max_tokens:
                self.finish_reason = "length"
        if self.text_of is not None:
            self._read(self.text_of(self.tokens))

    def _read(self, text: str) -> None:
        ends = [place for stop in self.sampling.stop if (place := text.find(stop)) >= 0]
        if ends:
            self.finish_reason = "stop"
            self.text = text[: min(ends)]
        elif self.finish_reason is not None:
            self.text = text
        else:
            self.text = text[: len(text) - _held_back(text, self.sampling.stop)]


def _held_back(text: str, stops: Collection[str]) -> int:
    """How many of the last characters may still change, or begin a stop string."""
    held = len(text) - len(text.rstrip(_UNFINISHED))
    for stop in stops:
        starts = (size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size]))
        held = max(held, next(starts, 0))
    return held
