"""Whose micro-batches make up the next shared batch: a pure decision over token counts."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """One adapter that has work: tokens of each micro-batch left in its optimizer step, and its wait."""

    job_id: str
    micro_batch_tokens: tuple[int, ...]
    left_out: int = 0  # shared batches made without it since its last one


def compose(candidates: Sequence[Candidate], token_budget: int) -> Mapping[str, int]:
    """Choose how many micro-batches each adapter puts into the next shared batch.

    The candidates come in the scheduler's order; each batch that an adapter is left out of moves it up one place, so
    that none starves. In a first round everyone in turn puts in one micro-batch if it still fits. What room
    is left then goes to further micro-batches of the same optimizer steps. Micro-batches are never split here, and
    one that is larger than the whole budget goes alone (`split_samples` sees to it that it is not much larger).

    Args:
        candidates: Adapters with at least one micro-batch left, in the scheduler's order.
        token_budget: Most tokens of the shared batch.

    Returns:
        Micro-batches to take, by job id; adapters that are left out do not appear. The mapping's order is that of
        the candidates, so that equal sets of adapters are always packed alike.
    """
    if not candidates:
        return {}
    queue = sorted(enumerate(candidates), key=lambda pair: (pair[0] - pair[1].left_out, pair[0]))
    chosen: dict[str, int] = {}
    room = token_budget
    for _, candidate in queue:
        tokens = candidate.micro_batch_tokens[0]
        if tokens <= room or not chosen:
            chosen[candidate.job_id] = 1
            room -= tokens
    for _, candidate in queue:
        if candidate.job_id not in chosen:
            continue
        for tokens in candidate.micro_batch_tokens[1:]:
            if tokens > room:
                break
            chosen[candidate.job_id] += 1
            room -= tokens
    return {candidate.job_id: chosen[candidate.job_id] for candidate in candidates if candidate.job_id in chosen}


_PATIENCE = 100  # shared batches without a shortage after which larger ones are tried


class TokenBudget:
    """The token budget of one actor. What memory took of it comes back after a while.

    A shortage need not last: others may have had the memory, or a sample was longer than most. So after `_PATIENCE`
    shared batches without one larger ones are tried, and after each that was in vain only twice as late.

    Attributes:
        wanted: Where more tokens no longer raise the speed, or what the operator says.
        fits: Tokens that memory is thought to have room for, since it ran out.
        within_limit: Tokens that keep to the operator's limit of memory, since it was passed.
    """

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.fits = self.within_limit = sys.maxsize
        self._calm = 0  # shared batches since the latest shortage or trial
        self._patience = _PATIENCE
        self._tried = False  # whether the latest change was a trial

    @property
    def tokens(self) -> int:
        """Most tokens of a shared batch."""
        return min(self.wanted, self.fits, self.within_limit)

    def ran_out(self, tokens: int) -> None:
        """Memory ran out with so many tokens in a shared batch."""
        self.fits = min(self.fits, max(1, tokens // 2))
        self._pressed()

    def passed_limit(self, tokens: int) -> None:
        """By its own measure, the actor keeps to its limit with so many tokens and not with more."""
        self.within_limit = min(self.within_limit, tokens)
        self._pressed()

    def has_room(self, tokens: int) -> None:
        """By its own measure, the actor keeps to its limit with so many tokens again."""
        self.within_limit = max(self.within_limit, tokens)

    def kept(self) -> bool:
        """A shared batch was made without a shortage; returns whether it is time to try larger ones."""
        self._calm += 1
        if self._calm < self._patience:
            return False
        self._calm, self._tried = 0, self.tokens < self.wanted
        if self._tried:
            self.adapter_left()
        return self._tried

    def _pressed(self) -> None:
        self._patience *= 2 if self._tried else 1
        self._calm, self._tried = 0, False

    def adapter_left(self) -> None:
        """There is more room again; how much, the next shared batches show. The operator's limit is not tried out."""
        self.fits = min(2 * self.fits, sys.maxsize)
