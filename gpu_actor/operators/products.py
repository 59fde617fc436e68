"""Products of many small matrices with the rows of their own groups: the seam behind which the kernels are chosen.

Rows of one group never enter the arithmetic of another: a value that is no number stays where it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F

_GROUPED_ON = (9, 10)  # Hopper, Blackwell: on other GPUs torch's grouped product is a loop that waits for the device
_KERNEL_BYTES = 16  # the grouped kernel reads in words of so many bytes: rows and groups start on their borders


@dataclass(frozen=True)
class Ends:
    """Where each group of rows ends; the first begins at 0, and none is empty.

    Attributes:
        host: As numbers.
        device: int32 [groups], the same beside the rows.
    """

    host: tuple[int, ...]
    device: torch.Tensor

    def spans(self) -> list[tuple[int, int]]:
        """First row, and one behind the last, of each group."""
        return list(zip((0, *self.host), self.host, strict=False))


class Products(Protocol):
    """The two products that many adapters on one packed row are made of."""

    def of_rows(self, rows: torch.Tensor, matrices: torch.Tensor, ends: Ends) -> torch.Tensor:
        """rows [T, k] times the matrix of their group, matrices [groups, k, m] -> [T, m]."""

    def of_groups(self, left: torch.Tensor, right: torch.Tensor, ends: Ends) -> torch.Tensor:
        """Of each group, left^T right: left [T, k], right [T, m] -> [groups, k, m]."""


class LoopedProducts:
    """One product per group: any device, any number format."""

    def of_rows(self, rows: torch.Tensor, matrices: torch.Tensor, ends: Ends) -> torch.Tensor:
        """rows [T, k], matrices [groups, k, m] -> [T, m]."""
        out = rows.new_empty(rows.shape[0], matrices.shape[2])
        for matrix, (start, end) in zip(matrices, ends.spans(), strict=True):
            torch.mm(rows[start:end], matrix, out=out[start:end])
        return out

    def of_groups(self, left: torch.Tensor, right: torch.Tensor, ends: Ends) -> torch.Tensor:
        """left [T, k], right [T, m] -> [groups, k, m]."""
        out = left.new_empty(len(ends.host), left.shape[1], right.shape[1])
        for product, (start, end) in zip(out, ends.spans(), strict=True):
            torch.mm(left[start:end].t(), right[start:end], out=product)
        return out


class GroupedProducts(LoopedProducts):
    """One kernel for all groups, torch's `grouped_mm`; one per group where the sizes are odd to that kernel."""

    def of_rows(self, rows: torch.Tensor, matrices: torch.Tensor, ends: Ends) -> torch.Tensor:
        """rows [T, k], matrices [groups, k, m] -> [T, m]."""
        if len(ends.host) == 1 or not (_aligned(rows) and _aligned(matrices)):
            return super().of_rows(rows, matrices, ends)
        return F.grouped_mm(rows, matrices, offs=ends.device)

    def of_groups(self, left: torch.Tensor, right: torch.Tensor, ends: Ends) -> torch.Tensor:
        """left [T, k], right [T, m] -> [groups, k, m]."""
        if len(ends.host) == 1 or not (_aligned(left) and _aligned(right)):
            return super().of_groups(left, right, ends)
        return F.grouped_mm(left.t(), right, offs=ends.device)


def _aligned(matrices: torch.Tensor) -> bool:
    """Whether the grouped kernel can read them: one of the last two sizes lies dense, all else starts on borders."""
    *outer, inner = sorted(matrices.stride(), reverse=True)
    places = (matrices.data_ptr(), *(stride * matrices.element_size() for stride in outer))
    return inner == 1 and all(place % _KERNEL_BYTES == 0 for place in places)


def choose_products(device: torch.device, dtype: torch.dtype) -> Products:
    """The fastest products that a device has for a number format."""
    grouped = hasattr(F, "grouped_mm") and dtype == torch.bfloat16  # torch below 2.10 has none
    if grouped and (device.type != "cuda" or torch.cuda.get_device_capability(device)[0] in _GROUPED_ON):
        return GroupedProducts()
    return LoopedProducts()
