"""RMSNorm (arXiv 1910.07467) with frozen weights: twelve kernels forward and backward, where autograd takes 23.

    y = x / sqrt(mean(x^2) + eps) * w

Only x and one number per row stay for the backward. Rows never meet, and no kernel's rounding depends on their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gpu_actor.elementwise.applied import applied


@dataclass(frozen=True)
class RmsNorm:
    """One norm of a model.

    Attributes:
        factor: w [n].
        eps: fp32, no dimensions.
        dtype: The number format of rows that it takes.
    """

    factor: torch.Tensor
    eps: torch.Tensor
    dtype: torch.dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., n] -> the same shape and dtype.

        A factor of the rows' own dtype multiplies what is rounded to it (LLaMA), a wider one what is not (Gemma).
        """
        return applied(_RmsNorm, x, self.factor, self.eps)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.addcmul(eps, length, length, value=1 / x.shape[-1]).rsqrt_()
        ctx.save_for_backward(x, scale, factor)
        if factor.dtype == x.dtype:
            return torch.mul(x, scale, out=torch.empty_like(x)).mul_(factor)
        return torch.mul(x * scale, factor, out=torch.empty_like(x))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        x, scale, factor = ctx.saved_tensors
        (grad,) = grads
        wide = torch.mul(grad, factor, out=torch.empty_like(grad, dtype=torch.float32))
        share = (wide * x).mean(-1, keepdim=True).mul_(scale).mul_(scale)
        wide.addcmul_(x, share, value=-1)
        if x.dtype == torch.float32:
            return wide.mul_(scale), None, None
        return torch.mul(wide, scale, out=torch.empty_like(x)), None, None
