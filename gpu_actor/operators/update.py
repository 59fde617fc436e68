"""What one adapter does to the rows of one segment at one layer: the base of every kind's forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gpu_actor.adapters.dropout import dropout_mask, dropped_share
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.batch.shared_batch import Segment

Saved = tuple[Any, ...]
"""The tensors that a backward needs; the mask among them is None without dropout."""


class Update:
    """The update for the rows of one segment, forward and backward.

    Attributes:
        rows: The rows of the segment.
        weights: The adapter.
        index: The layer's number.
        base: The frozen linear layer.
        scaling: The adapter's factor on the update.
        kept: Share of the inputs that dropout keeps; 1 where there is no dropout.
        scale: `scaling / kept`: dropout's 1 / (1 - p) is folded in, so that no scaled copy of the input is made.
    """

    def __init__(self, segment: Segment, weights: AdapterWeights, index: int, base: nn.Module) -> None:
        self.rows = slice(segment.start, segment.end)
        self.weights = weights
        self.index = index
        self.base = base
        self.scaling = weights.plans[index].scaling
        self.dropout = segment.dropout if weights.dropout > 0.0 else None
        self.kept = 1.0 if self.dropout is None else 1.0 - dropped_share(weights.dropout)
        self.scale = self.scaling / self.kept

    def forward(self, rows: torch.Tensor, out: torch.Tensor) -> Saved:
        """Add the update to the base's product.

        Args:
            rows: Inputs [T, in] of the layer, of all segments.
            out: The base's product [T, out], changed in place where the segment's rows are.

        Returns:
            What the backward needs.
        """
        raise NotImplementedError

    def through_base(self, grad: torch.Tensor, saved: Saved) -> torch.Tensor | None:  # noqa: ARG002
        """The gradient [n, out] that goes through the base product instead of `grad`; None where that is right."""
        return None

    def backward(self, rows: torch.Tensor, grad: torch.Tensor, saved: Saved, grad_inputs: torch.Tensor | None) -> None:
        """Add the gradients of the adapter to its buffer, and that of the layer's inputs to `grad_inputs`.

        Args:
            rows: As in `forward`.
            grad: Gradient [T, out] of the layer's outputs.
            saved: What `forward` returned.
            grad_inputs: Gradient [T, in] of the layer's inputs, changed in place; None where none is wanted.
        """
        raise NotImplementedError

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
