"""PiSSA (arXiv 2404.02948): LoRA that starts from the largest singular values of the base weight.

PEFT takes the start out of the base: W' = W - s B0 A0. Here the base is shared and stays as it is, and the start is
taken out of the update instead, which is the same function and has the same gradients:

    y += s * dropout(x) A^T B^T - s * x A0^T B0^T
"""

from __future__ import annotations

import torch

from gpu_actor.operators.lora import LoraUpdate
from gpu_actor.operators.update import Saved, add_product


class PissaUpdate(LoraUpdate):
    """LoRA's update less its start, which sees the input without dropout, as PEFT's base does."""

    def forward(self, rows: torch.Tensor, out: torch.Tensor) -> Saved:
        """Add the update to `out` [T, out]; return what the backward needs."""
        saved = super().forward(rows, out)
        a, b = self.weights.frozen[self.index]
        add_product(out[self.rows], rows[self.rows].to(a.dtype) @ a.t(), b.t(), -self.scaling)
        return saved

    def backward(self, rows: torch.Tensor, grad: torch.Tensor, saved: Saved, grad_inputs: torch.Tensor | None) -> None:
        """As of LoRA; the start passes a gradient to the inputs alone."""
        super().backward(rows, grad, saved, grad_inputs)
        if grad_inputs is not None:
            a, b = self.weights.frozen[self.index]
            add_product(grad_inputs[self.rows], grad[self.rows].to(a.dtype) @ b, a, -self.scaling)
