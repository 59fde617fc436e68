"""The product with a frozen linear layer of the base model, and its backward.

A quantised weight is made dense once per call, for all spans together, and again in the backward: at no time do two
layers' dense weights exist. (DoRA measures an adapted weight beside a dense one.)
"""

from __future__ import annotations

import torch
from torch import nn

from gpu_actor.loading.quantization import dequantised, quantization_of


def base_product(rows: torch.Tensor, base: nn.Module, spans: list[tuple[int, int]]) -> torch.Tensor:
    """rows [T, in] -> [T, out], one matrix product per span."""
    weight = dense_weight(base, rows.dtype).t()
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
    weight = dense_weight(base, grad.dtype)
    into = grad.new_empty(grad.shape[0], weight.shape[1])
    for start, end in spans:
        torch.mm(grad[start:end], weight, out=into[start:end])
    return into


def dense_weight(base: nn.Module, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The weight of a linear layer as [out, in]: a view of the layer's own, or a new tensor of a quantised one.

    Args:
        base: `nn.Linear`, `Conv1D`, or a linear layer of bitsandbytes.
        dtype: Of a dequantised weight; None: what it was quantised from. A plain weight is given as it is.
    """
    if quantization_of(base) is not None:
        return dequantised(base, dtype)
    weight: torch.Tensor = base.weight  # type: ignore[assignment]
    return weight.t() if is_transposed(base) else weight


def is_transposed(base: nn.Module) -> bool:
    """Whether a linear layer keeps its weight as [in, out], as GPT-2's Conv1D does."""
    return not isinstance(base, nn.Linear)
