"""SwiGLU (arXiv 2002.05202) that keeps its two inputs alone: silu(gate) is computed again in the backward.

y = silu(gate) up
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from gpu_actor.elementwise.applied import applied


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Gate and up [..., n] -> the same shape."""
    return applied(_SwiGlu, gate, up)


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        (grad,) = grads
        of_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return of_gate, F.silu(gate).mul_(grad)
