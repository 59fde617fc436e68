"""A linear layer for the few rows of a step of answers, on a CPU in fp32.

    y^T = W x^T

A step of answers has one row per answer, and what it costs is reading the weights. MKL reads them up to three times as
fast when the weight is the left factor, for two rows faster than its vector product does for one: so one row is
computed twice. It may round otherwise than the product of training, as a row of an answer may by its company anyway.
"""

from __future__ import annotations

import torch
from torch import nn

MOST_ROWS = 64  # from some hundred rows on both orders take as long


def are_few(rows: torch.Tensor) -> bool:
    """Whether rows [n, in] are better multiplied this way."""
    return rows.shape[0] <= MOST_ROWS and rows.dtype == torch.float32 and rows.device.type == "cpu"


def few_rows_product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """rows [n, in], weight [out, in], bias [out] -> [n, out]."""
    count = rows.shape[0]
    columns = torch.cat((rows, rows)) if count == 1 else rows  # in memory: the product is fast for this order alone
    out = torch.mm(weight, columns.t())[:, :count].t().contiguous()
    return out if bias is None else out.add_(bias)


class FewRowsLinear(nn.Module):
    """A plain linear layer, sharing its weight, that multiplies few rows this way."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [1, n, in] -> [1, n, out]."""
        if not are_few(x[0]):
            return self.base(x)  # type: ignore[no-any-return]
        return few_rows_product(x[0], self.base.weight, self.base.bias)[None]
