"""Gradient norms of several adapters at once, what each is clipped by, and whether it may step; nobody waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

_EPSILON = 1e-6  # as `torch.nn.utils.clip_grad_norm_` has it


@dataclass(frozen=True)
class Clip:
    """How one adapter's gradient is clipped.

    Attributes:
        norm: Scalar, the norm of the gradient before it.
        divisor: Scalar, what the gradient is divided by: clipping, and the base's gradient scale. A fused optimizer
            does that in its own kernel (`grad_scale`).
        bad: Scalar, 1.0 where the loss or the norm is not finite, else 0.0: then it makes no step (`found_inf`).
    """

    norm: torch.Tensor
    divisor: torch.Tensor
    bad: torch.Tensor


def clip_together(
    gradients: Sequence[torch.Tensor], losses: Sequence[torch.Tensor], limits: Sequence[float], scale: float
) -> list[Clip]:
    """Each gradient by itself, in a number of kernels that does not depend on how many there are.

    Args:
        gradients: Flat, one per adapter; they are not changed.
        losses: Scalar, of each.
        limits: The largest norm of each; infinite where it is not clipped.
        scale: How many times too large the gradients are (`AdapterWeights.gradient_scale`).
    """
    norms = torch.stack(torch._foreach_norm(list(gradients))) / scale
    bad = (~(norms.isfinite() & torch.stack(list(losses)).isfinite())).to(torch.float32)
    # fp32 is what fused optimizers read. Limits travel as arguments of a kernel: a tensor would be a copy to the device
    divisors = list((norms + _EPSILON).to(torch.float32).unbind())
    torch._foreach_div_(divisors, list(limits))
    torch._foreach_clamp_min_(divisors, 1.0)
    torch._foreach_mul_(divisors, scale)
    return [Clip(*found) for found in zip(norms.unbind(), divisors, bad.unbind(), strict=True)]
