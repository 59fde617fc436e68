"""Answers in the making on one base model: of any adapters, in one batch, which new ones join at any step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
import torch

from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.batch.shared_batch import MicroBatch, SharedBatch, Tokens, pack
from gpu_actor.contract.errors import DataError, TooLongError
from gpu_actor.contract.messages import one_line
from gpu_actor.generation.cache import KeyValueCache, Prefill
from gpu_actor.generation.reply import Reply
from gpu_actor.generation.sampling import choose
from gpu_actor.generation.scoring import likeliest, score_prompt
from gpu_actor.model.base_model import BaseModel

logger = logging.getLogger(__name__)

_PREFILL_TOKENS = 4096  # of a forward that takes in new prompts; a longer prompt has one to itself
MOST_TOKENS = 65_536  # that are kept at a time
_CHECK_LENGTHS = (9, 14)
_CHECK_STEPS = 3
# In two ways of computing a model agrees to rounding; a position or a state that is lost is gross.
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}

Room = Callable[[], float]
_Row = tuple[AdapterWeights | None, Tokens]


class Generator:
    """Makes answers, a token of each per step.

    A base whose sequences can be packed keeps keys and values; any other computes its sequences anew for each token.

    Attributes:
        cached: Whether keys and values are kept.
    """

    def __init__(self, base: BaseModel, most_tokens: int = MOST_TOKENS, room: Room | None = None) -> None:
        """Ask the base model whether it gives the same with a cache as without.

        Args:
            base: Served; only one thread at a time may use it.
            most_tokens: Of the answers in work with their prompts, as long as they may become; one that is longer has
                the place to itself.
            room: Bytes that their keys and values may take; None: any.
        """
        self._base, self._most_tokens, self._room = base, most_tokens, room
        self._token_bytes = _checked_token_bytes(base) if base.packed else 0
        self.cached = self._token_bytes > 0
        self._cache = KeyValueCache(base.device)
        self._waiting: list[Reply] = []
        self._running: list[Reply] = []

    def add(self, reply: Reply) -> None:
        """Let an answer be made.

        Raises:
            DataError: Its prompt is empty, or leaves no room for an answer.
        """
        most = self._base.description.positions
        if not len(reply.prompt):
            raise DataError("the question has no token; ask something")
        if most is not None and len(reply.prompt) >= most:
            raise TooLongError(
                f"the question has {len(reply.prompt)} tokens, the base model was made for {most}, question and answer "
                "together; ask something shorter"
            )
        self._waiting.append(reply)

    def drop(self, replies: Sequence[Reply]) -> None:
        """Make no further token of these answers."""
        self._waiting = [reply for reply in self._waiting if reply not in replies]
        self._keep([reply not in replies for reply in self._running])

    @property
    def idle(self) -> bool:
        """Whether no answer is being made."""
        return not self._waiting and not self._running

    def step(self) -> list[Reply]:
        """One forward: the first token of answers that wait, else the next one of all others.

        Returns:
            The answers that have got a token; those of them that are finished have left.
        """
        with torch.no_grad():
            asked = self._take_in() or self._running
            if not asked:
                return []
            logits = self._base.next_logits(self._hidden(asked))
            others = likeliest(logits, [reply.likeliest or 0 for reply in asked])
        chosen = choose(logits, [(reply.sampling, len(reply.tokens)) for reply in asked])
        for reply, (token, log_probability), row in zip(asked, chosen, others, strict=True):
            reply.add(token, log_probability, last=self._is_full(reply), likeliest=row)
        self._keep([reply.finish_reason is None for reply in self._running])
        return asked

    def run(self) -> None:
        """Make all answers."""
        while not self.idle:
            self.step()

    def _take_in(self) -> list[Reply]:
        """Those of the waiting answers whose prompts are computed now; they run from here on."""
        taken, tokens, kept = 0, 0, sum(map(_longest, self._running))
        most = self._most_kept()
        for reply in self._waiting:
            tokens += len(reply.prompt)
            kept += _longest(reply)
            if (taken and tokens > _PREFILL_TOKENS) or ((taken or self._running) and kept > most):
                break
            taken += 1
        asked, self._waiting = self._waiting[:taken], self._waiting[taken:]
        self._running += asked
        return asked

    def _most_kept(self) -> float:
        """Tokens of answers that may be in work at a time."""
        if self._room is None or not self.cached:
            return self._most_tokens
        return min(self._most_tokens, self._room() / self._token_bytes)

    def _hidden(self, asked: Sequence[Reply]) -> torch.Tensor:
        """Hidden states [answers, hidden] of the last token of each answer."""
        if self.cached and asked[0].tokens:
            rows = [(reply.weights, _whole(reply)[-1:]) for reply in asked]
            return _decode(self._base, rows, self._cache)
        rows = [(reply.weights, _whole(reply)) for reply in asked]
        sequences = _prefill(self._base, rows, self._cache) if self.cached else _sequences(self._base, rows)
        for reply, hidden in zip(asked, sequences, strict=True):
            if reply.score_prompt and not reply.noted_prompt:
                score_prompt(reply, hidden, self._base.head)
        return _last(sequences)

    def _is_full(self, reply: Reply) -> bool:
        most = self._base.description.positions
        return most is not None and len(reply.prompt) + len(reply.tokens) + 1 >= most

    def _keep(self, stays: Sequence[bool]) -> None:
        if all(stays):
            return
        rows = [row for row, stay in enumerate(stays) if stay]
        self._running = [self._running[row] for row in rows]
        if self.cached:
            self._cache.keep(rows)


def _longest(reply: Reply) -> int:
    """Tokens of an answer with its prompt, as many as there may be."""
    return len(reply.prompt) + reply.sampling.max_tokens


def _whole(reply: Reply) -> Tokens:
    return np.concatenate([reply.prompt, np.array(reply.tokens, dtype=np.int32)])


def _batch(base: BaseModel, rows: Sequence[_Row]) -> SharedBatch:
    """A shared batch of sequences; neighbours of one adapter share a segment."""
    parts = []
    for _, group in groupby(rows, key=lambda row: id(row[0])):
        members = list(group)
        ids = [tokens for _, tokens in members]
        parts.append(MicroBatch(members[0][0], ids, ids))
    return pack(parts, base.device)


def _last(sequences: Sequence[torch.Tensor]) -> torch.Tensor:
    """Hidden states [rows, hidden] of the last token of each sequence [any, hidden]."""
    return torch.stack([hidden[-1] for hidden in sequences])


def _sequences(base: BaseModel, rows: Sequence[_Row]) -> Sequence[torch.Tensor]:
    """Hidden states [its tokens, hidden] of each sequence."""
    batch = _batch(base, rows)
    try:
        hidden: torch.Tensor = base.hidden(batch)[0]
        return list(hidden.split(list(batch.lengths)))
    finally:
        base.rest()


def _prefill(base: BaseModel, rows: Sequence[_Row], cache: KeyValueCache) -> Sequence[torch.Tensor]:
    """The same; keys and values join the cache."""
    batch = _batch(base, rows)
    prefill = Prefill(batch.lengths)
    hidden: torch.Tensor = base.body.hidden_with(prefill, batch)[0]
    cache.join(prefill)
    return list(hidden.split(list(batch.lengths)))


def _decode(base: BaseModel, rows: Sequence[_Row], cache: KeyValueCache) -> torch.Tensor:
    """Hidden states [rows, hidden] of one further token of each row of the cache."""
    places = torch.tensor([cache.lengths], device=base.device)
    cache.begin()
    return base.body.hidden_with(cache, replace(_batch(base, rows), position_ids=places))[0]


def _checked_token_bytes(base: BaseModel) -> int:
    """Bytes that a cache keeps of a token; 0 if a few tokens, computed one by one, are not those of whole sequences."""
    random = np.random.default_rng(0)
    vocabulary = base.description.vocab_size
    ids = [random.integers(0, vocabulary, length + _CHECK_STEPS, dtype=np.int32) for length in _CHECK_LENGTHS]
    try:
        with torch.no_grad():
            cache = KeyValueCache(base.device)
            _prefill(base, [(None, row[:-_CHECK_STEPS]) for row in ids], cache)
            for step in range(_CHECK_STEPS, 0, -1):
                found = _decode(base, [(None, row[len(row) - step :][:1]) for row in ids], cache)
            expected = _last(_sequences(base, [(None, row) for row in ids]))
        difference = ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()
    except Exception as error:  # whatever the family's code raises
        logger.info("%s: no key-value cache (%s)", base.ref, one_line(error), exc_info=error)
        return 0
    same = difference <= _TOLERANCE[base.dtype]
    if not same:
        logger.info(
            "%s: with a key-value cache it computes something else (by %.1e): none is kept", base.ref, difference
        )
    return cache.token_bytes if same else 0
