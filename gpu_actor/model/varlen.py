"""Attention over a packed row in one call: FlashAttention's kernel for sequences of many lengths (arXiv 2307.08691).

It runs on CUDA in half precision. One call a layer instead of one per sequence, no mask in memory for a window, and no
plan per length, which cuDNN would make anew in every step. `packed_attention` is its oracle, and what stands in for it
elsewhere: in fp32 and on old GPUs. Capped scores (Gemma 2), which it does not know, go to `flex.py`.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch below 2.10
    varlen_attn = None  # type: ignore[assignment]

# what this torch's function takes: windows since 2.11, groups of heads since 2.12
_TAKEN = frozenset() if varlen_attn is None else frozenset(inspect.signature(varlen_attn).parameters)
_HALF = (torch.float16, torch.bfloat16)
_LARGEST_HEAD, _HEAD_STEP = 256, 8  # values of a head that the kernel takes at most, and their divisor
_FIRST_GPUS = (8, 0)  # compute capability: Ampere


@cache
def has_varlen(device: torch.device) -> bool:
    """Whether this torch, and the GPU if `device` is one, have the kernel."""
    if "window_size" not in _TAKEN:
        return False
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= _FIRST_GPUS


def serves_varlen(query: torch.Tensor, value: torch.Tensor, softcap: float | None) -> bool:
    """Whether the kernel computes this attention; shapes are those of `varlen_attention`."""
    size = query.shape[-1]
    fits = size == value.shape[-1] and size % _HEAD_STEP == 0 and size <= _LARGEST_HEAD
    return softcap is None and fits and query.dtype in _HALF


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    borders: torch.Tensor,
    longest: int,
    scaling: float | None = None,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """Causal attention within each sequence of a packed row, as `packed_attention` defines it.

    Args:
        query: [1, heads, T, head size], fp16 or bf16.
        key: [1, key-value heads, T, head size]; heads is a multiple of key-value heads.
        value: The same shape.
        borders: int32 [sequences + 1], where each sequence starts, and T.
        longest: Tokens of the longest of them.
        scaling: Factor on the scores; None is 1 / sqrt(head size).
        sliding_window: A query sees this many latest positions, itself included.

    Returns:
        [1, T, heads, head size].
    """
    # the kernel's window counts the positions before the query, without it
    window = (-1, 0) if sliding_window is None else (sliding_window - 1, 0)
    # kernels of torch 2.11 take fewer key-value heads as they come; later ones want to be told
    more: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in _TAKEN else {}
    q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    out = varlen_attn(q, k, v, borders, borders, longest, longest, scale=scaling, window_size=window, **more)
    return out.unsqueeze(0)  # type: ignore[union-attr]
