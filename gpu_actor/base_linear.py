"""The product with a frozen linear layer of the base model, and its backward."""

from __future__ import annotations

import torch
from torch import nn


def base_product(rows: torch.Tensor, base: nn.Module, spans: list[tuple[int, int]]) -> torch.Tensor:
    """rows [T, in] -> [T, out], one matrix product per span."""
    weight = _in_out(base)
    bias: torch.Tensor | None = base.bias  # type: ignore[assignment]
    out = rows.new_empty(rows.shape[0], weight.shape[1])
    for start, end in spans:
        if bias is None:
            torch.mm(rows[start:end], weight, out=out[start:end])
        else:
            torch.addmm(bias, rows[start:end], weight, out=out[start:end])
    return out


def base_product_backward(grad: torch.Tensor, base: nn.Module, spans: list[tuple[int, int]]) -> torch.Tensor:
    """grad [T, out] -> [T, in]; the frozen weight gets none."""
    weight = _in_out(base).t()
    into = grad.new_empty(grad.shape[0], weight.shape[1])
    for start, end in spans:
        torch.mm(grad[start:end], weight, out=into[start:end])
    return into


def is_transposed(base: nn.Module) -> bool:
    """Whether a linear layer keeps its weight as [in, out], as GPT-2's Conv1D does."""
    return not isinstance(base, nn.Linear)


def _in_out(base: nn.Module) -> torch.Tensor:
    """The weight of a linear layer as [in, out]."""
    weight: torch.Tensor = base.weight  # type: ignore[assignment]
    return weight if is_transposed(base) else weight.t()


def dense_weight(base: nn.Module) -> torch.Tensor:
    """The weight of a linear layer as [out, in], in a floating dtype; a view of the layer's own where there is one."""
    return _in_out(base).t()
