"""Attention with capped scores over a packed row in one call: torch's flex attention (arXiv 2412.05496).

`varlen.py` knows no caps (Gemma 2), and `packed_attention`, the oracle, keeps all scores of a sequence for the
backward; this kernel keeps none. It runs on CUDA in half precision, where torch can compile it. Not compiled it makes
the scores of the whole row, which only tests bear, and the count of activations, whose tensors have no values.

A row comes in blocks (`blocked_row.py`), and their number is the one size that the compiler is told to leave open: it
compiles nothing anew for a row of another length. All else is constant. Told to leave everything open
(`dynamic=True`), torch 2.13 takes scale and cap for inputs too, and then fails at the gradient of the score.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import Any

import torch

from gpu_actor.batch.blocked_row import BLOCK, BlockedRow
from gpu_actor.contract.messages import one_line

try:
    from torch._higher_order_ops.flex_attention import flex_attention as flex_operator
    from torch.nn.attention.flex_attention import BlockMask, flex_attention
except ImportError:  # a torch that has it nowhere, or elsewhere
    flex_attention = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_HALF = (torch.float16, torch.bfloat16)
_LEAST_HEAD = 16  # values of a head that the kernels take at least
# For cards with less shared memory than torch's own tiles ask for: 113 KiB with heads of 256 values, a 4090 has 99.
_SMALL_TILES = {f"BLOCK_{tile}": 32 for tile in ("M", "N", "M1", "N1", "M2", "N2")} | {"num_stages": 1}

_Attend = Callable[..., torch.Tensor]


def serves_flex(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether the kernel may compute attention with capped scores; shapes are those of `packed_attention`."""
    small = min(query.shape[-1], value.shape[-1]) < _LEAST_HEAD
    return flex_attention is not None and query.dtype in _HALF and not small


class CappedAttention:
    """The attention of one base: its layers share how the latest row lies in blocks, and one mask for each window."""

    def __init__(self, compiles: bool) -> None:
        """Compile what computes it, or take it as it is."""
        self._compiles = compiles
        self._row_of = lru_cache(maxsize=1)(BlockedRow)

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        lengths: tuple[int, ...],
        scaling: float | None,
        sliding_window: int | None,
        softcap: float,
    ) -> torch.Tensor | None:
        """What `packed_attention` returns; None: torch cannot compile it here, it is to be computed."""
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        attend: _Attend | None = partial(_attend, _uncompiled, None, scale, softcap)
        if self._compiles:
            heads, sizes = (query.shape[1], key.shape[1]), (query.shape[3], value.shape[3])
            attend = compiled(query.device, query.dtype, heads, sizes, scale, softcap)
        if attend is None:
            return None
        row = self._row_of(lengths, query.device)
        spread = (row.spread(part) for part in (query, key, value))
        return attend(*spread, *row.seen(sliding_window)).index_select(1, row.places)


def _attend(
    flex: _Attend,
    tiles: dict[str, int] | None,
    scale: float,
    softcap: float,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *seen: torch.Tensor,
) -> torch.Tensor:
    """What `BlockedRow` spreads -> [1, places, heads, value size]."""
    *tables, first = seen
    first = first.flatten()
    query, key, value = (part.flatten(1, 2).transpose(1, 2) for part in (query, key, value))

    def capped(score: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    def sees(_batch: torch.Tensor, _head: torch.Tensor, asking: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        return (asked <= asking) & (asked >= first[asking])

    # the mask is put together in here, as the length of a finished one would be a constant
    mask = BlockMask((query.shape[2], key.shape[2]), *tables, (BLOCK, BLOCK), sees)  # type: ignore[arg-type, call-arg]
    return flex(query, key, value, capped, mask, scale, enable_gqa=True, kernel_options=tiles).transpose(1, 2)


def _uncompiled(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, score: _Attend, mask: Any, scale: float, **_: Any
) -> torch.Tensor:
    """The operator itself: torch's function refuses gradients on a CPU."""
    return flex_operator(query, key, value, score, mask.as_tuple(), scale, {})[0]  # type: ignore[no-any-return]


@cache
def compiled(
    device: torch.device,
    dtype: torch.dtype,
    heads: tuple[int, int],
    sizes: tuple[int, int],
    scale: float,
    softcap: float,
) -> _Attend | None:
    """The kernel for heads of queries and of keys and values, tried once; None, with a warning: torch makes none."""
    program = torch.compile(_attend, fullgraph=True, dynamic=False)
    for tiles in (None, _SMALL_TILES):
        attend = partial(program, flex_attention, tiles, scale, softcap)
        try:
            _try_out(attend, device, dtype, heads, sizes)
        except Exception as error:  # whatever compiler and driver trip over
            problem = error
        else:
            return attend
    logger.warning(
        "attention with capped scores is computed sequence by sequence, with all scores in memory: torch cannot "
        "compile it here (%s)",
        one_line(problem),
    )
    return None


def _try_out(
    attend: _Attend, device: torch.device, dtype: torch.dtype, heads: tuple[int, int], sizes: tuple[int, int]
) -> None:
    """Compile the program without gradients and that with them, for any number of blocks, and run both."""
    lengths = (BLOCK + 1, 1)
    row = BlockedRow(lengths, device)
    shapes = [(1, heads[of], sum(lengths), sizes[value]) for of, value in ((0, 0), (1, 0), (1, 1))]
    for trains in (False, True):
        parts = [torch.zeros(shape, device=device, dtype=dtype, requires_grad=trains) for shape in shapes]
        with torch.set_grad_enabled(trains):
            out = attend(*(row.spread(part) for part in parts), *row.seen(None))
        if trains:
            out.sum().backward()
