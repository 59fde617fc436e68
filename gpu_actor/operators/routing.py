"""Which adapters the forward that is running serves, and what must be computed segment by segment for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from gpu_actor.batch.parcel import Parcel
from gpu_actor.batch.row_tables import RowTables
from gpu_actor.batch.shared_batch import Segment
from gpu_actor.operators.adapter_group import AdapterGroup, group_adapters, in_group
from gpu_actor.operators.products import Products, choose_products

_State = tuple[tuple[Segment, ...], tuple[int, ...], bool, torch.Tensor | None, tuple[AdapterGroup, ...], torch.Tensor]


class Routing:
    """Which segments the forward that is running serves; shared by all hooked layers of one base model.

    Attributes:
        segments: The segments of the forward, which tile its rows.
        lengths: The lengths of its sequences, in order.
        padded: Every sequence is a row of its own, padded on the right; else all are packed into one row.
        groups: The runs of segments whose adapters are served by one product each; none where `products` is None.
        anchor: A scalar that requires gradients: it makes autograd visit the hooked layers although neither base
            weights nor token ids do.
        borders: int32 [sequences + 1], where each sequence starts in a packed row, and its end.
        by_segment: Make base products and activations segment by segment (CPU).
        together: Make them at once all the same, in a forward that no gradient comes of.
        products: How the products of groups of adapters are made; None: every segment's update is made apart, which
            is exact whatever the company is, and what the groups are measured by.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32, kernels: str | None = None) -> None:
        """No forward is running.

        Args:
            device: Where the base model is.
            dtype: The number format that it computes in.
            kernels: The kind of device whose way of computing is taken; None: that of `device`.
        """
        self.segments: tuple[Segment, ...] = ()
        self.lengths: tuple[int, ...] = ()
        self.padded = False
        self.borders: torch.Tensor | None = None
        self.groups: tuple[AdapterGroup, ...] = ()
        self._ungrouped: list[Segment] = []
        self.anchor = self._leaf = torch.zeros((), device=device, requires_grad=True)
        self.by_segment = (kernels or device.type) == "cpu"
        self.together = False
        self.products: Products | None = None if self.by_segment else choose_products(device, dtype)
        self._dtype = dtype

    def begin(
        self,
        segments: tuple[Segment, ...],
        lengths: tuple[int, ...],
        padded: bool,
        borders: torch.Tensor | None = None,
        tables: RowTables | None = None,
    ) -> None:
        """A forward with these segments and sequences starts; `tables` are those of its rows, where they are there."""
        groups: tuple[AdapterGroup, ...] = ()
        anchor = self._leaf
        if self.products is not None and segments:
            groups = group_adapters(segments, tables or _sent(segments, anchor.device), self.products, self._dtype)
            anchor = _Anchor.apply(anchor, groups)  # type: ignore[no-untyped-call]
        self._set((segments, lengths, padded, borders, groups, anchor))

    def _set(self, state: _State) -> None:
        self.segments, self.lengths, self.padded, self.borders, self.groups, self.anchor = state
        self._ungrouped = [segment for segment in self.segments if not in_group(segment)]

    @property
    def apart(self) -> Sequence[Segment]:
        """The segments that are in no group."""
        return self.segments if self.products is None else self._ungrouped

    def remembered(self, hidden: torch.Tensor) -> torch.Tensor:
        """The same hidden states; before their backward, the routing becomes that of now again.

        Gradient checkpointing runs layers a second time in the backward, when another forward may have come since.
        Autograd works off the latest forward first, so each one's layers run again under their own routing.
        """
        state: _State = (self.segments, self.lengths, self.padded, self.borders, self.groups, self.anchor)
        return _Remembered.apply(hidden, partial(self._set, state))  # type: ignore[no-any-return, no-untyped-call]

    def spans(self, rows: int) -> list[tuple[int, int]]:
        """The row ranges that are multiplied with the base weights in one product each."""
        if self.by_segment and self.segments and not self.together:
            return [(segment.start, segment.end) for segment in self.segments]
        return [(0, rows)]


def _sent(segments: tuple[Segment, ...], device: torch.device) -> RowTables:
    """The tables of rows that a forward laid out anew, in a copy to the device of their own."""
    parcel = Parcel()
    for array in RowTables.arrays([segment.rows for segment in segments]):
        parcel.add(array)
    return RowTables.arrived(*parcel.send(device))


class _Remembered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, remember: Callable[[], None]) -> torch.Tensor:
        ctx.remember = remember
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.remember()
        return grads[0], None


class _Anchor(torch.autograd.Function):
    """What every hooked layer of a forward hangs on: its backward comes when all of theirs are made."""

    @staticmethod
    def forward(ctx: Any, leaf: torch.Tensor, groups: tuple[AdapterGroup, ...]) -> torch.Tensor:
        ctx.groups = groups
        return leaf.view_as(leaf)

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor | None) -> tuple[None, None]:
        for group in ctx.groups:
            group.finish()
        return None, None


class SegmentwiseActivation(nn.Module):
    """An activation function applied segment by segment.

    Vectorised CPU kernels finish the odd end of a tensor with scalar code that may round differently, so the value
    of an element can depend on how many rows follow it. Per segment it cannot. A strided input (half of a fused
    gate_up projection) takes other kernels than a contiguous one, so all become contiguous.
    """

    def __init__(self, base: nn.Module, routing: Routing) -> None:
        super().__init__()
        self.base = base
        self.routing = routing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [1, T, n] or [T, n] -> the same shape."""
        rows = x.shape[-2]
        spans = self.routing.spans(rows)
        if len(spans) == 1 or spans[-1][1] != rows:
            return self.base(x.contiguous())  # type: ignore[no-any-return]
        parts = x.split([end - start for start, end in spans], dim=-2)
        return torch.cat([self.base(part.contiguous()) for part in parts], dim=-2)
