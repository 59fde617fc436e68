"""LoRA and rsLoRA (arXiv 2106.09685, 2312.03732): the low-rank update of one adapter to the output of one layer.

y += s * dropout(x) A^T B^T
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gpu_actor.adapters.dropout import dropout_mask, dropped_share
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.batch.shared_batch import Segment

Saved = tuple[Any, ...]
"""The tensors that a backward needs; the mask among them is None without dropout."""


class LowRankUpdate:
    """The update for the rows of one segment, forward and backward. The other kinds of adapter derive from it.

    Attributes:
        rows: The rows of the segment.
        kept: Share of the inputs that dropout keeps; 1 where there is no dropout.
    """

    def __init__(self, segment: Segment, weights: AdapterWeights, index: int, base: nn.Module) -> None:
        self.rows = slice(segment.start, segment.end)
        self.weights = weights
        self.index = index
        self.base = base
        self.scaling = weights.plans[index].scaling
        self.dropout = segment.dropout if weights.dropout > 0.0 else None
        self.kept = 1.0 if self.dropout is None else 1.0 - dropped_share(weights.dropout)
        # dropout's 1 / (1 - p) is folded into the scale, so that no scaled copy of the input is made
        self.scale = self.scaling / self.kept

    def forward(self, rows: torch.Tensor, out: torch.Tensor) -> Saved:
        """Add the update to `out` [T, out]; return what the backward needs: x A^T [n, r] and the dropout mask."""
        a, b = self.weights.layers[self.index][:2]
        inputs, mask = self.drop(rows[self.rows].to(a.dtype))
        low = inputs @ a.t()
        add_product(out[self.rows], low, b.t(), self.scale)
        return low, mask

    def through_base(self, grad: torch.Tensor, saved: Saved) -> torch.Tensor | None:  # noqa: ARG002
        """The gradient [n, out] that goes through the base product instead of `grad`; None where that is right."""
        return None

    def backward(self, rows: torch.Tensor, grad: torch.Tensor, saved: Saved, into: torch.Tensor | None) -> None:
        """Add the gradients to the adapter's buffer, and that of the input to `into` [T, in]."""
        low, mask = saved
        a, b = self.weights.layers[self.index][:2]
        grad_a, grad_b = self.weights.gradients[self.index][:2]
        own = grad[self.rows].to(a.dtype)
        inputs = rows[self.rows].to(a.dtype)
        grad_b.addmm_(own.t(), low, alpha=self.scale)
        grad_low = (own @ b).mul_(self.scale)
        grad_a.addmm_(grad_low.t(), inputs if mask is None else inputs * mask)
        if into is None:
            return
        if mask is None:
            add_product(into[self.rows], grad_low, a, 1.0)
        else:
            into[self.rows] += ((grad_low @ a) * mask).to(into.dtype)

    def drop(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Inputs [n, in] with some set to zero (not yet scaled up), and the mask."""
        if self.dropout is None:
            return inputs, None
        mask = torch.ones_like(inputs, dtype=torch.bool)
        start = 0
        for length, rows, seed in self.dropout:
            # for the real rows alone: CUDA draws other numbers for another size, and padding depends on the company
            real = mask[start : start + length]
            real.copy_(dropout_mask(seed, self.index, self.weights.dropout, real))
            start += rows
        return inputs * mask, mask


def add_product(target: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float) -> None:
    """target += scale * left @ right, in place when the dtypes agree."""
    if target.dtype == left.dtype:
        target.addmm_(left, right, alpha=scale)
    else:
        target += (scale * (left @ right)).to(target.dtype)
