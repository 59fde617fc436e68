"""LoRA and rsLoRA (arXiv 2106.09685, 2312.03732): the low-rank update.

y += s * dropout(x) A^T B^T
"""

from __future__ import annotations

import torch

from gpu_actor.operators.update import Saved, Update, add_product


class LoraUpdate(Update):
    """LoRA's update for the rows of one segment."""

    def forward(self, rows: torch.Tensor, out: torch.Tensor) -> Saved:
        """Add the update to `out` [T, out]; return what the backward needs: x A^T [n, r] and the dropout mask."""
        a, b = self.weights.layers[self.index]
        inputs, mask = self.drop(rows[self.rows].to(a.dtype))
        low = inputs @ a.t()
        add_product(out[self.rows], low, b.t(), self.scale)
        return low, mask

    def backward(self, rows: torch.Tensor, grad: torch.Tensor, saved: Saved, grad_inputs: torch.Tensor | None) -> None:
        """Add the gradients of A and B to the adapter's buffer, and that of the inputs to `grad_inputs` [T, in]."""
        low, mask = saved
        a, b = self.weights.layers[self.index]
        grad_a, grad_b = self.weights.gradients[self.index]
        segment_grad = grad[self.rows].to(a.dtype)
        inputs = rows[self.rows].to(a.dtype)
        grad_b.addmm_(segment_grad.t(), low, alpha=self.scale)
        grad_low = (segment_grad @ b).mul_(self.scale)
        grad_a.addmm_(grad_low.t(), inputs if mask is None else inputs * mask)
        if grad_inputs is None:
            return
        if mask is None:
            add_product(grad_inputs[self.rows], grad_low, a, 1.0)
        else:
            grad_inputs[self.rows] += ((grad_low @ a) * mask).to(grad_inputs.dtype)
