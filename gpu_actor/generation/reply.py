"""One answer in the making: its tokens, its text, and why it ended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.batch.shared_batch import Tokens
from gpu_actor.contract.questions import Sampling, ScoredToken

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer makes of half a character
FinishReason = Literal["stop", "length"]
Likeliest = Sequence[tuple[int, float]]
"""Tokens and their log-probabilities, the likeliest first."""


@dataclass(eq=False)
class Reply:
    """The answer of one adapter to one prompt.

    Attributes:
        weights: Who answers; None is the bare base model.
        prompt: Token ids [n], n >= 1.
        sampling: How tokens are chosen.
        end_tokens: Token ids that end the answer, and are left out of it.
        text_of: The text of token ids; without it stop strings are not looked for.
        likeliest: Note each token with so many of the likeliest in its place; None: note none.
        score_prompt: Note the tokens of the prompt too.
        name_of: The text of one token id, for what is noted.
        tokens: The answer so far.
        log_probabilities: Of each of its tokens.
        text: Of the answer so far; what may still become part of a stop string or of a character is left out.
        noted: Tokens of the answer, the one that ended it included, and what the model thought of them.
        noted_prompt: The same of the prompt.
        finish_reason: `stop`: by a token or a text that ends it; `length`: it has all the tokens that it may have;
            None: it goes on.
    """

    weights: AdapterWeights | None
    prompt: Tokens
    sampling: Sampling
    end_tokens: Collection[int] = ()
    text_of: Callable[[Sequence[int]], str] | None = None
    likeliest: int | None = None
    score_prompt: bool = False
    name_of: Callable[[int], str] = str
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    text: str = ""
    noted: list[ScoredToken] = field(default_factory=list)
    noted_prompt: list[ScoredToken] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, token: int, log_probability: float, *, last: bool, likeliest: Likeliest = ()) -> None:
        """Take in the next token, with the likeliest in its place; `last`: there is no room for another one."""
        reason: FinishReason | None = None
        if self.likeliest is not None:
            self.noted.append(self.scored(token, log_probability, likeliest))
        if token in self.end_tokens:
            reason = "stop"
        else:
            self.tokens.append(token)
            self.log_probabilities.append(log_probability)
            if last or len(self.tokens) >= self.sampling.max_tokens:
                reason = "length"
        if self.text_of is not None:
            reason = self._read(self.text_of(self.tokens), reason)
        self.finish_reason = reason  # last: other threads look, and what is finished must be whole

    def scored(self, token: int, log_probability: float | None, likeliest: Likeliest) -> ScoredToken:
        """A token as it is noted."""
        others = tuple((self.name_of(other), value) for other, value in likeliest)
        return ScoredToken(self.name_of(token), log_probability, others)

    def _read(self, text: str, reason: FinishReason | None) -> FinishReason | None:
        """Take in the text of all tokens, after the last of which the answer ends for a reason; why it does end."""
        ends = [place for stop in self.sampling.stop if (place := text.find(stop)) >= 0]
        if ends:
            self.text = text[: min(ends)]
            return "stop"
        self.text = text if reason is not None else text[: len(text) - _held_back(text, self.sampling.stop)]
        return reason


def _held_back(text: str, stops: Collection[str]) -> int:
    """How many of the last characters may still change, or begin a stop string."""
    held = len(text) - len(text.rstrip(_UNFINISHED))
    for stop in stops:
        starts = (size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size]))
        held = max(held, next(starts, 0))
    return held
