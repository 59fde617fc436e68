"""The multi-adapter linear operator: one frozen linear layer, many low-rank updates on one packed row.

    y[s] = x[s] W^T + bias + scaling * dropout(x[s]) A^T B^T        for the rows s of each segment

(LoRA, arXiv 2106.09685; rsLoRA, arXiv 2312.03732, differs in `scaling` alone.) Rows of one segment never enter the
arithmetic of another. On a CPU even the base product is made segment by segment, because matrix kernels may round a
row differently when more rows stand around it: so an adapter's bytes do not depend on its company. On an
accelerator the base product is made once for all rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gpu_actor.base_linear import base_product, base_product_backward, is_transposed
from gpu_actor.config import LoraConfig
from gpu_actor.routing import Routing

if TYPE_CHECKING:
    from gpu_actor.batch import Segment

_ALIGNMENT = 16  # values: each tensor starts on a 64-byte border of the flat buffer


class AdapterWeights:
    """The trainable values of one adapter: every A and B is a view of one flat parameter.

    One flat buffer makes clip, optimizer step and zeroing a single call each, whatever the number of layers.

    Attributes:
        flat: The parameter (padding between tensors stays zero).
        gradient: Its gradient, always allocated.
        layers: Layer index -> (A [r, in], B [out, r]), views of `flat`.
        gradients: The same views of `gradient`.
        names: Layer index -> module name.
    """

    def __init__(
        self,
        lora: LoraConfig,
        shapes: Mapping[int, tuple[str, int, int]],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        transposed: bool = False,
    ) -> None:
        """Allocate zeros.

        Args:
            lora: Rank, scale and dropout.
            shapes: Layer index -> (module name, in_features, out_features).
            device: Where the values live.
            dtype: fp32, or fp64 in tests.
            transposed: The base layers keep [in, out] (Conv1D), which PEFT wants to know of an adapter.
        """
        self.lora = lora
        self.transposed = transposed
        self.scaling = lora.scaling
        self.dropout = lora.lora_dropout
        self.names = {index: name for index, (name, _, _) in shapes.items()}
        plan: list[tuple[int, tuple[int, int], tuple[int, int]]] = []
        size = 0
        for index, (_, columns, rows) in shapes.items():
            start_a, size = size, size + _aligned(lora.r * columns)
            start_b, size = size, size + _aligned(lora.r * rows)
            plan.append((index, (start_a, columns), (start_b, rows)))
        self.flat = nn.Parameter(torch.zeros(size, dtype=dtype, device=device))
        self.gradient = torch.zeros_like(self.flat.data)
        self.flat.grad = self.gradient
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.gradients: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for index, (start_a, columns), (start_b, rows) in plan:
            for views, buffer in ((self.layers, self.flat.data), (self.gradients, self.gradient)):
                a = buffer[start_a : start_a + lora.r * columns].view(lora.r, columns)
                b = buffer[start_b : start_b + lora.r * rows].view(rows, lora.r)
                views[index] = (a, b)

    @property
    def parameters(self) -> int:
        """Number of trainable values (the padding of the buffer left out)."""
        return sum(a.numel() + b.numel() for a, b in self.layers.values())

    @property
    def bytes_in_training(self) -> int:
        """Bytes of the values, their gradient and AdamW's two moments."""
        return 4 * self.flat.numel() * self.flat.element_size()

    def initialise(self, seed: int) -> None:
        """Start as PEFT does: A is Kaiming-uniform with a = sqrt(5), B is zero. The seed alone decides A."""
        generator = torch.Generator().manual_seed(seed)
        for a, b in self.layers.values():
            values = torch.empty(a.shape, dtype=torch.float32)
            nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=generator)
            a.copy_(values)
            b.zero_()

    def zero_grad(self) -> None:
        """Clear the gradient; the buffer stays, because the views point into it."""
        self.gradient.zero_()


def _aligned(values: int) -> int:
    return -(-values // _ALIGNMENT) * _ALIGNMENT


class MultiAdapterLinear(nn.Module):
    """A frozen linear layer of the base model (`nn.Linear` or GPT-2's `Conv1D`) that serves many adapters."""

    def __init__(self, base: nn.Module, index: int, routing: Routing) -> None:
        super().__init__()
        self.base = base
        self.index = index
        self.routing = routing
        self.transposed = is_transposed(base)

    @property
    def weight(self) -> torch.Tensor:
        """The base weight as it is stored; some models read it."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> torch.Tensor | None:
        """The base bias, if there is one."""
        return self.base.bias  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out]; the leading sizes multiply to the T rows of the shared batch."""
        routing = self.routing
        return _MultiAdapterLinear.apply(x, routing.anchor, self, routing.segments)  # type: ignore[no-any-return, no-untyped-call]


class _MultiAdapterLinear(torch.autograd.Function):
    """Forward and backward of the operator.

    Gradients of A and B are added to the adapter's own buffer directly, segment by segment in the order of the
    batch: so an adapter's sum does not depend on who else is there.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, _anchor: torch.Tensor, layer: MultiAdapterLinear, segments: tuple[Segment, ...]
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        spans = layer.routing.spans(rows.shape[0])
        out = base_product(rows, layer.base, spans)
        updates = [
            _Update(segment, segment.weights, layer.index)
            for segment in segments
            if segment.weights is not None and layer.index in segment.weights.layers
        ]
        saved = [update.forward(rows, out) for update in updates]
        ctx.layer, ctx.updates, ctx.spans, ctx.shape = layer, updates, spans, x.shape
        ctx.save_for_backward(*([rows] if updates else []), *[tensor for pair in saved for tensor in pair])
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        layer: MultiAdapterLinear = ctx.layer
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        into = base_product_backward(grad, layer.base, ctx.spans) if ctx.needs_input_grad[0] else None
        if ctx.updates:
            rows, *saved = ctx.saved_tensors
            for update, low, mask in zip(ctx.updates, saved[::2], saved[1::2], strict=True):
                update.backward(rows, grad, low, mask, into)
        return (None if into is None else into.view(ctx.shape)), None, None, None


class _Update:
    """The low-rank update of one adapter to one layer's output, for the rows of one segment."""

    def __init__(self, segment: Segment, weights: AdapterWeights, index: int) -> None:
        self.rows = slice(segment.start, segment.end)
        self.weights = weights
        self.index = index
        self.seed = segment.dropout_seed if weights.dropout > 0.0 else None
        # dropout's 1 / (1 - p) is folded into the scale, so that no scaled copy of the input is made
        kept = 1.0 if self.seed is None else 1.0 - dropped_share(weights.dropout)
        self.scale = weights.scaling / kept

    def forward(self, rows: torch.Tensor, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Add the update to `out` [T, out]; return what the backward needs: x A^T [n, r] and the dropout mask."""
        a, b = self.weights.layers[self.index]
        inputs = rows[self.rows].to(a.dtype)
        mask = None
        if self.seed is not None:
            mask = dropout_mask(self.seed, self.index, self.weights.dropout, inputs)
            inputs = inputs * mask
        low = inputs @ a.t()
        _add_product(out[self.rows], low, b.t(), self.scale)
        return low, mask

    def backward(
        self,
        rows: torch.Tensor,
        grad: torch.Tensor,
        low: torch.Tensor,
        mask: torch.Tensor | None,
        into: torch.Tensor | None,
    ) -> None:
        """Add the gradients of A and B to the adapter's buffer, and that of the input to `into` [T, in]."""
        a, b = self.weights.layers[self.index]
        grad_a, grad_b = self.weights.gradients[self.index]
        own = grad[self.rows].to(a.dtype)
        inputs = rows[self.rows].to(a.dtype)
        grad_b.addmm_(own.t(), low, alpha=self.scale)
        grad_low = (own @ b).mul_(self.scale)
        grad_a.addmm_(grad_low.t(), inputs if mask is None else inputs * mask)
        if into is None:
            return
        if mask is None:
            _add_product(into[self.rows], grad_low, a, 1.0)
        else:
            into[self.rows] += ((grad_low @ a) * mask).to(into.dtype)


def _add_product(target: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float) -> None:
    """target += scale * left @ right, in place when the dtypes agree."""
    if target.dtype == left.dtype:
        target.addmm_(left, right, alpha=scale)
    else:
        target += (scale * (left @ right)).to(target.dtype)


def dropout_mask(seed: int, index: int, probability: float, like: torch.Tensor) -> torch.Tensor:
    """Which inputs of layer `index` survive dropout: a function of the seed and the layer alone.

    16 random bits decide each value, which is several times faster on a CPU than drawing floats; the probability is
    rounded to a multiple of 2^-16 for that.

    Returns:
        bool, the shape of `like`; True with probability 1 - `dropped_share(probability)`.
    """
    generator = torch.Generator(device=like.device).manual_seed(mix_seed(seed, index))
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None, generator=generator)
    bits = words.view(torch.int16)[: like.numel()].view(like.shape)
    return bits >= round(probability * 2**16) - 2**15


def dropped_share(probability: float) -> float:
    """The probability that `dropout_mask` really uses."""
    return round(probability * 2**16) / 2**16


def mix_seed(seed: int, index: int) -> int:
    """A well-spread 63-bit seed for stream `index` of `seed` (the finaliser of splitmix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (value ^ (value >> 31)) & 0x7FFFFFFFFFFFFFFF
