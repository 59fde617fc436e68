"""A packed row laid out anew in blocks, none of which holds tokens of two sequences.

A kernel that multiplies whole blocks multiplies what it masks as well, by zero, and zero times a neighbour's NaN is
NaN. So every sequence begins a block of its own: no value of a neighbour is in any product, and a sequence is computed
alike in any company. It costs half a block of empty places a sequence on average.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

from gpu_actor.batch.parcel import Parcel

BLOCK = 128  # tokens: flex attention's own size, which the tiles of all its kernels divide

_Numbers = npt.NDArray[np.int64]


class BlockedRow:
    """Where the tokens of a packed row go, and what each place sees.

    Attributes:
        places: int64 [T], where each token goes.
    """

    def __init__(self, lengths: tuple[int, ...], device: torch.device) -> None:
        """Lay out sequences of these lengths, for tensors on this device."""
        self._device = device
        self._seen: dict[int | None, list[torch.Tensor]] = {}
        sizes = np.array(lengths, dtype=np.int64)
        counts = -(-sizes // BLOCK)
        starts = np.cumsum(counts) - counts
        # two blocks are the least: a compiler takes a size of one for a constant
        self._starts = np.concatenate([np.repeat(starts, counts), np.arange(counts.sum(), 2)])
        moved = np.repeat(BLOCK * starts - (np.cumsum(sizes) - sizes), sizes)
        (self.places,) = self._sent(np.arange(sizes.sum()) + moved)

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """[1, heads, T, size] -> [1, blocks, BLOCK, heads, size], zero where no token is."""
        _, heads, _, size = rows.shape
        spread = rows.new_zeros(1, BLOCK * len(self._starts), heads, size)
        spread.index_copy_(1, self.places, rows.transpose(1, 2))
        return _left_open(spread.view(1, -1, BLOCK, heads, size), (1,))

    def seen(self, window: int | None) -> list[torch.Tensor]:
        """Which blocks see which, as the eight tables of a `BlockMask`, and the first place that each place sees.

        Attention is causal, within the sequence, to which the empty places behind it belong.

        Args:
            window: A place sees this many latest ones, itself included; None: all.

        Returns:
            int32 [1, 1, blocks, ...], and [1, 1, places]; made once for each window.
        """
        if window not in self._seen:
            block, place = np.arange(len(self._starts)), np.arange(BLOCK * len(self._starts))
            width = len(place) if window is None else window
            behind = BLOCK * (block[:, None] - block)  # from the first place of one to the first of the other
            some = (behind >= 0) & (block >= self._starts[:, None]) & (behind - BLOCK + 1 < width)
            whole = some & (behind > 0) & (behind + BLOCK - 1 < width)
            partly = some & ~whole
            tables = [table for seen in (partly, whole, partly.T, whole.T) for table in _listed(seen)]
            first = np.maximum(BLOCK * self._starts.repeat(BLOCK), place - width + 1)
            sent = self._sent(*tables, first[None, None])
            self._seen[window] = [_left_open(table.to(torch.int32), range(2, table.dim())) for table in sent]
        return self._seen[window]

    def _sent(self, *arrays: _Numbers) -> list[torch.Tensor]:
        parcel = Parcel()
        for array in arrays:
            parcel.add(array)
        return parcel.send(self._device)


def _left_open(tensor: torch.Tensor, sizes: Iterable[int]) -> torch.Tensor:
    """Tell a compiler that it is not to take these sizes for constants."""
    torch._dynamo.maybe_mark_dynamic(tensor, tuple(sizes))
    return tensor


def _listed(seen: npt.NDArray[np.bool_]) -> tuple[_Numbers, _Numbers]:
    """How many blocks each one sees, [1, 1, n], and their numbers, [1, 1, n, n], those of the others behind them."""
    return seen.sum(1, dtype=np.int64)[None, None], np.argsort(~seen, axis=1, kind="stable")[None, None]
