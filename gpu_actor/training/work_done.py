"""What an actor has trained in all, for its metrics."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_actor.batch.shared_batch import MicroBatch


class WorkDone:
    """Totals since the actor started.

    Attributes:
        tokens: Real tokens of all shared batches.
        padding_avoided: Tokens of padding that the same micro-batches would have had, with every row as long as the
            longest.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.padding_avoided = 0

    def add(self, micro_batches: Sequence[MicroBatch]) -> int:
        """Count a shared batch in; returns its real tokens."""
        tokens = sum(micro_batch.tokens for micro_batch in micro_batches)
        rectangles = sum(
            len(micro_batch.sequences) * max(map(len, micro_batch.sequences)) for micro_batch in micro_batches
        )
        self.tokens += tokens
        self.padding_avoided += rectangles - tokens
        return tokens
