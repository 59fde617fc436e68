"""The multi-adapter linear operator: one frozen linear layer, the updates of many adapters on one packed row.

    y[s] = x[s] W^T + bias, changed by the adapter of the rows s of each segment

Rows of one segment never enter the arithmetic of another. On a CPU everything, the base product as well, is made
segment by segment, because matrix kernels may round a row differently when more rows stand around it: so an adapter's
bytes do not depend on its company. On an accelerator the base product is made once for all rows, and the updates of
LoRA adapters once for each group of those that have one layout (`adapter_group.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from gpu_actor.batch.shared_batch import Segment
from gpu_actor.contract.errors import BaseModelError
from gpu_actor.elementwise.applied import applied
from gpu_actor.loading.quantization import dense_weight, is_transposed
from gpu_actor.operators import UPDATES
from gpu_actor.operators.adapter_group import AdapterGroup
from gpu_actor.operators.few_rows import are_few, few_rows_product
from gpu_actor.operators.routing import Routing
from gpu_actor.operators.update import Saved, Update


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
        out = applied(_MultiAdapterLinear, x, routing.anchor, self, routing.segments)
        # shaped out here: Falcon adds to the result in place, which autograd forbids for a view made in a Function
        return out.view(*x.shape[:-1], out.shape[-1])  # type: ignore[no-any-return]


class _MultiAdapterLinear(torch.autograd.Function):
    """Forward and backward of the operator.

    Gradients of an adapter are added to its buffer directly, segment by segment in the order of the batch, or by its
    group at the end: so an adapter's sum does not depend on who else is there.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, _anchor: torch.Tensor, layer: MultiAdapterLinear, segments: tuple[Segment, ...]
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if segments and rows.shape[0] != segments[-1].end:  # experts, say: whose rows these are, nobody knows
            raise BaseModelError(
                f"a linear layer is applied to {rows.shape[0]} rows, not to the {segments[-1].end} of the shared batch"
            )
        spans = layer.routing.spans(rows.shape[0])
        groups = [group for group in layer.routing.groups if layer.index in group.layers]
        grouped = [group.forward(rows[group.rows], layer.index) for group in groups]
        if layer.routing.together and not groups and are_few(rows):
            out = few_rows_product(rows, dense_weight(layer.base, rows.dtype), layer.bias)
        else:
            out = base_product(rows, layer.base, spans, groups, [update for update, _ in grouped])
        updates = [
            UPDATES[type(segment.weights.kind)](segment, segment.weights, layer.index, layer.base)
            for segment in layer.routing.apart
            if segment.weights is not None and layer.index in segment.weights.layers
        ]
        saved = [update.forward(rows, out) for update in updates]
        ctx.layer, ctx.groups, ctx.updates, ctx.spans, ctx.shape = layer, groups, updates, spans, x.shape
        ctx.counts = [len(tensors) for tensors in saved]
        ctx.save_for_backward(
            *([rows] if groups or updates else []), *(low for _, low in grouped), *itertools.chain(*saved)
        )
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        layer: MultiAdapterLinear = ctx.layer
        groups: list[AdapterGroup] = ctx.groups
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        rows, *kept = ctx.saved_tensors or (grad,)
        saved = [tuple(part) for part in _split(kept[len(groups) :], ctx.counts)]
        wanted = ctx.needs_input_grad[0]
        parts = [
            group.backward(rows[group.rows], grad[group.rows], low, layer.index, wanted=wanted)
            for group, low in zip(groups, kept[: len(groups)], strict=True)
        ]
        grad_inputs = None
        if wanted:
            through, added = _through_base(grad, ctx.updates, saved), [part for part in parts if part is not None]
            grad_inputs = base_product_backward(through, layer.base, ctx.spans, groups, added)
        for update, tensors in zip(ctx.updates, saved, strict=True):
            update.backward(rows, grad, tensors, grad_inputs)
        return (None if grad_inputs is None else grad_inputs.view(ctx.shape)), None, None, None


def _through_base(grad: torch.Tensor, updates: Sequence[Update], saved: Sequence[Saved]) -> torch.Tensor:
    """The gradient [T, out] of the base's product; a copy of `grad` only where an adapter scales that product."""
    through = grad
    for update, tensors in zip(updates, saved, strict=True):
        scaled = update.through_base(grad[update.rows], tensors)
        if scaled is not None:
            through = grad.clone() if through is grad else through
            through[update.rows] = scaled
    return through


def _split(flat: list[torch.Tensor | None], counts: list[int]) -> list[list[torch.Tensor | None]]:
    ends = [sum(counts[: place + 1]) for place in range(len(counts))]
    return [flat[end - count : end] for end, count in zip(ends, counts, strict=True)]


def base_product(
    rows: torch.Tensor,
    base: nn.Module,
    spans: Sequence[tuple[int, int]],
    groups: Sequence[AdapterGroup] = (),
    updates: Sequence[torch.Tensor] = (),
) -> torch.Tensor:
    """rows [T, in] -> [T, out], one matrix product per span, and the updates of groups added to their rows."""
    weight = dense_weight(base, rows.dtype).t()
    bias: torch.Tensor | None = base.bias  # type: ignore[assignment]
    if _covers(groups, rows):
        out = updates[0].addmm_(rows, weight)  # the product ends by adding: one kernel, and one less pass over memory
        return out if bias is None else out.add_(bias)
    out = rows.new_empty(rows.shape[0], weight.shape[1])
    for start, end in spans:
        if bias is None:
            torch.mm(rows[start:end], weight, out=out[start:end])
        else:
            torch.addmm(bias, rows[start:end], weight, out=out[start:end])
    return _added(out, groups, updates)


def base_product_backward(
    grad: torch.Tensor,
    base: nn.Module,
    spans: Sequence[tuple[int, int]],
    groups: Sequence[AdapterGroup] = (),
    updates: Sequence[torch.Tensor] = (),
) -> torch.Tensor:
    """grad [T, out] -> [T, in], and the parts of groups added to their rows; the frozen weight gets none."""
    weight = dense_weight(base, grad.dtype)
    if _covers(groups, grad):
        return updates[0].addmm_(grad, weight)
    grad_inputs = grad.new_empty(grad.shape[0], weight.shape[1])
    for start, end in spans:
        torch.mm(grad[start:end], weight, out=grad_inputs[start:end])
    return _added(grad_inputs, groups, updates)


def _covers(groups: Sequence[AdapterGroup], rows: torch.Tensor) -> bool:
    """Whether one group has all rows."""
    return len(groups) == 1 and groups[0].rows == slice(0, rows.shape[0])


def _added(out: torch.Tensor, groups: Sequence[AdapterGroup], updates: Sequence[torch.Tensor]) -> torch.Tensor:
    for group, update in zip(groups, updates, strict=True):
        out[group.rows] += update
    return out
