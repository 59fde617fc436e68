"""DoRA (arXiv 2402.09353): the length of every output's weights is trained apart from their direction.

    V = W + s B A,   c = m / ||V||,   y = bias + c * (x V^T)

The norm takes no gradient (section 4.3 of the paper). With dropout, PEFT leaves the product of the base whole:
y = bias + x W^T + c * (d V^T) - d W^T, where d = dropout(x).
"""

from __future__ import annotations

import torch

from gpu_actor.adapters.kinds.dora import weight_norm
from gpu_actor.loading.quantization import dense_weight
from gpu_actor.operators.update import Saved, Update, add_product


class DoraUpdate(Update):
    """DoRA's change to the rows of one segment."""

    def forward(self, rows: torch.Tensor, out: torch.Tensor) -> Saved:
        """Change `out` [T, out]; return d A^T [n, r], the mask, d V^T [n, out] and the norm [out]."""
        a, b, magnitude = self.weights.layers[self.index]
        norm = weight_norm(a, b, self.scaling, self.base)
        inputs, mask = self.drop(rows[self.rows].to(a.dtype))
        low = inputs @ a.t()
        bias: torch.Tensor | None = self.base.bias  # type: ignore[assignment]
        target = out[self.rows]
        if mask is None:
            adapted = target.to(a.dtype, copy=True) if bias is None else target.to(a.dtype) - bias
        else:
            adapted = (inputs @ dense_weight(self.base).to(a.dtype).t()).div_(self.kept)
            target -= adapted.to(target.dtype)
        add_product(adapted, low, b.t(), self.scale)
        scaled = adapted * (magnitude / norm)
        if mask is None:
            target.copy_(scaled if bias is None else scaled + bias)
        else:
            target += scaled.to(target.dtype)
        return low, mask, adapted, norm

    def through_base(self, grad: torch.Tensor, saved: Saved) -> torch.Tensor | None:
        """Without dropout the base's product is scaled as well; with it, it goes through as it is."""
        _, mask, _, norm = saved
        magnitude = self.weights.layers[self.index][2]
        return None if mask is not None else (grad.to(magnitude.dtype) * (magnitude / norm)).to(grad.dtype)

    def backward(self, rows: torch.Tensor, grad: torch.Tensor, saved: Saved, grad_inputs: torch.Tensor | None) -> None:
        """Add the gradients to the adapter's buffer, and that of the input to `grad_inputs` [T, in]."""
        low, mask, adapted, norm = saved
        a, b, magnitude = self.weights.layers[self.index]
        grad_a, grad_b, grad_magnitude = self.weights.gradients[self.index]
        segment_grad = grad[self.rows].to(a.dtype)
        inputs = rows[self.rows].to(a.dtype)
        grad_magnitude += (segment_grad * adapted).sum(0) / norm
        factor = magnitude / norm
        scaled = segment_grad * factor
        grad_b.addmm_(scaled.t(), low, alpha=self.scale)
        grad_low = (scaled @ b).mul_(self.scale)
        grad_a.addmm_(grad_low.t(), inputs if mask is None else inputs * mask)
        if grad_inputs is None:
            return
        if mask is None:
            add_product(grad_inputs[self.rows], grad_low, a, 1.0)
        else:
            dropped = (segment_grad * (factor - 1.0)) @ dense_weight(self.base).to(a.dtype)
            grad_inputs[self.rows] += (dropped.div_(self.kept).addmm_(grad_low, a) * mask).to(grad_inputs.dtype)
