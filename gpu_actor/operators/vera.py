"""VeRA (arXiv 2310.11454): two trained vectors between random matrices that are frozen and shared by all layers.

y += lambda_b * ((lambda_d * (dropout(x) A^T)) B^T)
"""

from __future__ import annotations

import torch

from gpu_actor.operators.update import Saved, Update


class VeraUpdate(Update):
    """VeRA's update for the rows of one segment."""

    def forward(self, rows: torch.Tensor, out: torch.Tensor) -> Saved:
        """Add the update to `out` [T, out]; return what the backward needs: x A^T [n, r] and the dropout mask."""
        lambda_b, _ = self.weights.layers[self.index]
        a, _ = self.weights.frozen[self.index]
        inputs, mask = self.drop(rows[self.rows].to(a.dtype))
        low = inputs @ a.t()
        out[self.rows] += (self._high(low) * lambda_b).to(out.dtype)
        return low, mask

    def backward(
        self,
        rows: torch.Tensor,  # noqa: ARG002
        grad: torch.Tensor,
        saved: Saved,
        grad_inputs: torch.Tensor | None,
    ) -> None:
        """Add the gradients of the vectors to the adapter's buffer, and that of the input to `grad_inputs` [T, in]."""
        low, mask = saved
        lambda_b, lambda_d = self.weights.layers[self.index]
        grad_b, grad_d = self.weights.gradients[self.index]
        a, b = self.weights.frozen[self.index]
        segment_grad = grad[self.rows].to(a.dtype)
        grad_b += (segment_grad * self._high(low)).sum(0)
        grad_low = ((segment_grad * lambda_b) @ b).mul_(self.scale)
        grad_d += (grad_low * low).sum(0)
        if grad_inputs is not None:
            inner = (grad_low * lambda_d) @ a
            grad_inputs[self.rows] += (inner if mask is None else inner * mask).to(grad_inputs.dtype)

    def _high(self, low: torch.Tensor) -> torch.Tensor:
        """(lambda_d * low) B^T, [n, out]: cheaper to make again than to keep."""
        lambda_d = self.weights.layers[self.index][1]
        return (low * lambda_d * self.scale) @ self.weights.frozen[self.index][1].t()
