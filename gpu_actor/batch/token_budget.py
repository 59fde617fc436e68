"""How many tokens a shared batch may hold: as many as the scheduler wants, as far as memory has shown to go."""

from __future__ import annotations

import sys


class TokenBudget:
    """The token budget of one actor.

    Attributes:
        wanted: Where more tokens no longer raise the speed, or what the operator says.
        fits: Tokens that memory is thought to have room for, since it ran out.
        within_limit: Tokens that keep to the operator's limit of memory, since it was passed.
    """

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.fits = self.within_limit = sys.maxsize

    @property
    def tokens(self) -> int:
        """Most tokens of a shared batch."""
        return min(self.wanted, self.fits, self.within_limit)

    def ran_out(self, tokens: int) -> None:
        """Memory ran out with so many tokens in a shared batch."""
        self.fits = min(self.fits, max(1, tokens // 2))

    def passed_limit(self, tokens: int) -> None:
        """By its own measure, the actor keeps to its limit with so many tokens and not with more."""
        self.within_limit = min(self.within_limit, tokens)

    def adapter_left(self) -> None:
        """There is more room again; how much, the next shared batches show. The operator's limit is not tried out."""
        self.fits = min(2 * self.fits, sys.maxsize)
