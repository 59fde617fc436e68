"""Rotary position embedding (arXiv 2104.09864) in place: three kernels a tensor, forward and backward alike.

    y = x cos + rotate_half(x) sin

What the backward needs, cosines and sines, all layers share.
"""

from __future__ import annotations

from typing import Any

import torch

from gpu_actor.elementwise.applied import applied


def rotate(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate queries and keys [..., heads, T, size], as `apply_rotary_pos_emb` of transformers' LLaMA does.

    Args:
        query: Queries.
        key: Keys; they may have fewer heads.
        cos: [1 or batch, T, size].
        sin: The same shape.
        unsqueeze_dim: Where the dimension of the heads is.
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return applied(_Rotate, query, cos, sin), applied(_Rotate, key, cos, sin)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        first, second = sin.chunk(2, dim=-1)
        return _turned(x, cos, first, second, -1.0)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        first, second = sin.chunk(2, dim=-1)
        return _turned(grads[0], cos, second, first, 1.0), None, None


def _turned(
    x: torch.Tensor, cos: torch.Tensor, to_first: torch.Tensor, to_second: torch.Tensor, sign: float
) -> torch.Tensor:
    """x cos, and each half of x times its sines added to the other half."""
    out = x * cos
    first, second = x.chunk(2, dim=-1)
    out_first, out_second = out.chunk(2, dim=-1)
    out_first.addcmul_(second, to_first, value=sign)
    out_second.addcmul_(first, to_second, value=-sign)
    return out
