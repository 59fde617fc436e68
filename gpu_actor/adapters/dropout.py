"""Dropout whose mask is a function of a seed, a layer and a place alone, never of the company.

There are two of them. On a CPU a generator draws the mask of a whole sequence, and the mask is kept for the backward.
On an accelerator a hash says of every input by itself whether it is dropped, in one kernel for all sequences; the
backward asks it again, so that nothing is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from gpu_actor.contract.messages import one_line

logger = logging.getLogger(__name__)

_STEPS = 2**16  # probabilities are multiples of its inverse
_MASK_64 = 0xFFFFFFFFFFFFFFFF
_Drop = Callable[[Sequence[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor], list[torch.Tensor]]


def dropout_mask(seed: int, index: int, probability: float, like: torch.Tensor) -> torch.Tensor:
    """Which inputs of layer `index` survive dropout: a function of the seed and the layer alone.

    16 random bits decide each value, which is several times faster on a CPU than drawing floats; the probability is
    rounded to a multiple of 2^-16 for that.

    Returns:
        bool, the shape of `like`; True with probability 1 - `dropped_share(probability)`.
    """
    generator = torch.Generator(device=like.device).manual_seed(mix_seed(seed, index))
    random_words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    random_words.random_(-(2**63), None, generator=generator)
    bits = random_words.view(torch.int16)[: like.numel()].view(like.shape)
    return bits >= round(probability * _STEPS) - 2**15


def dropped_share(probability: float) -> float:
    """The probability that is really used."""
    return round(probability * _STEPS) / _STEPS


def mix_seed(seed: int, index: int) -> int:
    """A well-spread 63-bit seed for stream `index` of `seed` (the finaliser of splitmix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xD1B54A32D192ED03) & _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return (value ^ (value >> 31)) & 0x7FFFFFFFFFFFFFFF


def _mix_seeds(seed: int, count: int) -> npt.NDArray[np.int32]:
    """The upper 32 bits of what `mix_seed` mixes for the streams 0 ... count - 1 of `seed`."""
    streams = np.arange(1, count + 1, dtype=np.uint64)
    value = np.uint64(seed * 0x9E3779B97F4A7C15 & _MASK_64) + streams * np.uint64(0xD1B54A32D192ED03)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    upper: npt.NDArray[np.int32] = (value >> np.uint64(32)).astype(np.uint32).view(np.int32)
    return upper


def dropout_words(seed: int, rows: int, probability: float) -> npt.NDArray[np.int64]:
    """What `RowDropout` has to know of the rows of a sequence, int64 [rows].

    The lower half tells the rows apart, by the sequence's seed and the place in it alone; the upper half says below
    which hash an input is dropped: the least number of all where nothing is.
    """
    floor = round(probability * _STEPS) * 2**16 - 2**31
    return _mix_seeds(seed, rows).view(np.uint32).astype(np.int64) | floor << 32


class RowDropout:
    """Dropout of packed rows that keeps no mask."""

    def __init__(self, words: torch.Tensor) -> None:
        """Keep a number of two halves for each row: int64 [n], the `dropout_words` of every sequence."""
        self._keys, self._floors = words.view(torch.int32).view(-1, 2, 1).unbind(1)

    def __call__(self, index: int, *rows: torch.Tensor) -> list[torch.Tensor]:
        """What layer `index` drops is zero in copies of `rows` [n, width] each; nothing is scaled up."""
        device = self._keys.device
        drop = _compiled() if device.type == "cuda" else _drop
        keys = self._keys + _signed(mix_seed(0, index) >> 31)
        return drop(rows, keys, _column_keys(rows[0].shape[1], device), self._floors)


def _drop(
    rows: Sequence[torch.Tensor], keys: torch.Tensor, columns: torch.Tensor, floors: torch.Tensor
) -> list[torch.Tensor]:
    """rows [n, width] each, keys [n, 1], columns [width], floors [n, 1].

    The sign of a shifted number only changes which mixing function this is; a product's upper bits hang on all bits
    below them, and they are the ones that decide.
    """
    bits = (keys ^ columns) * 0x7FEB352D
    bits ^= bits >> 15
    bits *= _signed(0x846CA68B)
    dropped = bits < floors
    return [part.masked_fill(dropped, 0) for part in rows]


@cache
def _compiled() -> _Drop:
    """The same in one kernel, as torch's compiler makes it; kernel by kernel where there is no compiler."""
    compiled: _Drop = torch.compile(_drop, dynamic=True)
    try:
        small = torch.ones(3, 5, dtype=torch.int32, device="cuda")
        compiled((small.float(),), small[:, :1], small[0], small[:, :1])
    except Exception as error:  # whatever the compiler trips over, the plain kernels do the same
        logger.warning("dropout runs without torch.compile, in eight kernels instead of one: %s", one_line(error))
        return _drop
    return compiled


@cache
def _column_keys(width: int, device: torch.device) -> torch.Tensor:
    """What tells the columns apart, int32 [width]."""
    return torch.from_numpy(_mix_seeds(1, width)).to(device)


def _signed(value: int) -> int:
    """The int32 number with the same 32 lower bits."""
    return (value + 2**31) % 2**32 - 2**31
