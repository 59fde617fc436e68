"""Which adapters the forward that is running serves, and what must be computed segment by segment for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gpu_actor.batch.shared_batch import Segment


class Routing:
    """Which segments the forward that is running serves; shared by all hooked layers of one base model.

    Attributes:
        segments: The segments of the forward, which tile its rows.
        lengths: The lengths of its sequences, in order.
        padded: Every sequence is a row of its own, padded on the right; else all are packed into one row.
        anchor: A scalar that requires gradients: it makes autograd visit the hooked layers although neither base
            weights nor token ids do.
        borders: int32 [sequences + 1], where each sequence starts in a packed row, and its end.
        by_segment: Make base products and activations segment by segment (CPU).
        together: Make them at once all the same, in a forward that no gradient comes of.
    """

    def __init__(self, device: torch.device, kernels: str | None = None) -> None:
        """No forward is running.

        Args:
            device: Where the base model is.
            kernels: The kind of device whose way of computing is taken; None: that of `device`.
        """
        self.segments: tuple[Segment, ...] = ()
        self.lengths: tuple[int, ...] = ()
        self.padded = False
        self.borders: torch.Tensor | None = None
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self.by_segment = (kernels or device.type) == "cpu"
        self.together = False

    def begin(
        self,
        segments: tuple[Segment, ...],
        lengths: tuple[int, ...],
        padded: bool,
        borders: torch.Tensor | None = None,
    ) -> None:
        """A forward with these segments and sequences starts, or is made again for its backward."""
        self.segments, self.lengths, self.padded, self.borders = segments, lengths, padded, borders

    def remembered(self, hidden: torch.Tensor) -> torch.Tensor:
        """The same hidden states; before their backward, the routing becomes that of now again.

        Gradient checkpointing runs layers a second time in the backward, when another forward may have come since.
        Autograd works off the latest forward first, so each one's layers run again under their own routing.
        """
        return _Remembered.apply(hidden, self, (self.segments, self.lengths, self.padded, self.borders))  # type: ignore[no-any-return, no-untyped-call]

    def spans(self, rows: int) -> list[tuple[int, int]]:
        """The row ranges that are multiplied with the base weights in one product each."""
        if self.by_segment and self.segments and not self.together:
            return [(segment.start, segment.end) for segment in self.segments]
        return [(0, rows)]


class _Remembered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, routing: Routing, state: tuple[Any, ...]) -> torch.Tensor:
        ctx.routing, ctx.state = routing, state
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        ctx.routing.begin(*ctx.state)
        return grads[0], None, None


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
