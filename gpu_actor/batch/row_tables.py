"""What kernels that serve many adapters at once ask about the rows of a forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gpu_actor.adapters.dropout import dropout_words

_Words = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SegmentRows:
    """The rows of one segment.

    Attributes:
        count: How many there are, padding included.
        dropout: As in `Segment`.
        probability: The adapter's dropout.
    """

    count: int
    dropout: tuple[tuple[int, int, int], ...] | None
    probability: float

    @property
    def dropped(self) -> bool:
        """Whether anything is dropped."""
        return self.dropout is not None and self.probability > 0.0

    def words(self) -> _Words:
        """int64 [count], one for each row, as `RowDropout` wants them."""
        if self.dropout is None or not self.dropped:
            return dropout_words(0, self.count, 0.0)
        return np.concatenate([dropout_words(seed, rows, self.probability) for _, rows, seed in self.dropout])


@dataclass(frozen=True)
class RowTables:
    """On the device.

    Attributes:
        ends: int32 [segments], one behind the last row of each.
        dropout: int64 [rows], as `RowDropout` wants them; None where nothing is dropped.
    """

    ends: torch.Tensor
    dropout: torch.Tensor | None

    @staticmethod
    def arrays(segments: Sequence[SegmentRows]) -> tuple[_Words, _Words]:
        """The two tables before they travel; the second is empty where nothing is dropped."""
        ends = np.cumsum([segment.count for segment in segments], dtype=np.int64)
        if not any(segment.dropped for segment in segments):
            return ends, np.empty(0, dtype=np.int64)
        return ends, np.concatenate([segment.words() for segment in segments])

    @classmethod
    def arrived(cls, ends: torch.Tensor, dropout: torch.Tensor) -> RowTables:
        """Of what `arrays` gave, on the device."""
        return cls(ends.to(torch.int32), dropout if len(dropout) else None)
