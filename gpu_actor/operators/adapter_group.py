"""Adjacent segments whose LoRA adapters have one layout: one product serves them all.

y += s * dropout(x) A^T B^T, every row with A and B of its own adapter. Where adapters resemble each other, as those
of a grid do, a shared batch is one such group, and the number of kernels does not depend on the number of adapters.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from gpu_actor.adapters.dropout import RowDropout, dropped_share
from gpu_actor.adapters.kinds.lora import Lora
from gpu_actor.adapters.layout import Layout
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.batch.row_tables import RowTables
from gpu_actor.batch.shared_batch import Segment
from gpu_actor.operators.products import Ends, Products
from gpu_actor.operators.working_copies import Member, WorkingCopies


class AdapterGroup:
    """A run of rows of a shared batch, and the adapters that change them.

    Attributes:
        rows: The rows.
        layers: Numbers of the layers that the adapters change.
    """

    def __init__(
        self, first: int, segments: Sequence[Segment], tables: RowTables, products: Products, dtype: torch.dtype
    ) -> None:
        """Copy the adapters' values.

        Args:
            first: Number of the first of the segments in the forward.
            segments: Adjacent ones, whose adapters have one layout.
            tables: Of all rows of the forward.
            products: How the products are made.
            dtype: The number format of the products.
        """
        runs = [(member, list(run)) for member, run in itertools.groupby(segments, _member)]
        self.rows = slice(segments[0].start, segments[-1].end)
        self._products = products
        self._copies = WorkingCopies([member for member, _ in runs], tables.ends.device, dtype)
        self.layers = self._copies.layers.keys()
        ends = tables.ends[first : first + len(segments)]
        if len(runs) < len(segments):  # adapters with several micro-batches: where the last of each ends
            last = itertools.accumulate(len(run) for _, run in runs)
            ends = torch.stack([ends[number - 1] for number in last])
        self._ends = Ends(tuple(run[-1].end - self.rows.start for _, run in runs), ends - self.rows.start)
        dropped = tables.dropout is not None and any(member.kept < 1.0 for member, _ in runs)
        self._dropout = RowDropout(tables.dropout[self.rows]) if dropped and tables.dropout is not None else None

    def forward(self, rows: torch.Tensor, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The update of one layer.

        Args:
            rows: The layer's inputs [n, in], of this group.
            index: The layer.

        Returns:
            The update [n, out], and what the backward needs, [n, r]: dropout(x) A^T.
        """
        a, b = self._matrices(index, rows.dtype)
        inputs = rows if self._dropout is None else self._dropout(index, rows)[0]
        low = self._products.of_rows(inputs, a.transpose(1, 2), self._ends)
        return self._products.of_rows(low, b.transpose(1, 2), self._ends), low

    def backward(
        self, rows: torch.Tensor, grad: torch.Tensor, low: torch.Tensor, index: int, *, wanted: bool
    ) -> torch.Tensor | None:
        """Add to the sums of the adapters' gradients.

        Args:
            rows: As in `forward`.
            grad: Gradient [n, out] of the layer's outputs.
            low: As `forward` gave it.
            index: The layer.
            wanted: Whether the inputs want a gradient.

        Returns:
            The update's part [n, in] of the inputs' gradient; None where none is wanted.
        """
        a, b = self._matrices(index, rows.dtype)
        grad_low = self._products.of_rows(grad, b, self._ends)
        inputs, grad_inputs = rows, self._products.of_rows(grad_low, a, self._ends) if wanted else None
        if self._dropout is not None and grad_inputs is not None:
            inputs, grad_inputs = self._dropout(index, rows, grad_inputs)
        elif self._dropout is not None:
            (inputs,) = self._dropout(index, rows)
        of_a = self._products.of_groups(grad_low, inputs, self._ends)
        self._copies.add_gradients(index, of_a, self._products.of_groups(grad, low, self._ends))
        return grad_inputs

    def finish(self) -> None:
        """The backward is over: the adapters get their gradients."""
        self._copies.hand_on_gradients()

    def _matrices(self, index: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = self._copies.layers[index]
        return a.to(dtype), b.to(dtype)  # a few models compute a layer in fp32


def group_adapters(
    segments: Sequence[Segment], tables: RowTables, products: Products, dtype: torch.dtype
) -> tuple[AdapterGroup, ...]:
    """The groups of a forward; segments of other kinds of adapter, or of none, are in none of them."""
    groups, first = [], 0
    for layout, run in itertools.groupby(segments, lambda s: _member(s).layout if in_group(s) else None):
        members = list(run)
        if layout is not None:
            groups.append(AdapterGroup(first, members, tables, products, dtype))
        first += len(members)
    return tuple(groups)


def in_group(segment: Segment) -> bool:
    """Whether the adapter of a segment is one that groups are made of."""
    return segment.weights is not None and _groups_take(segment.weights)


def side_by_side(adapters: Sequence[AdapterWeights]) -> list[int]:
    """Numbers of adapters in an order that makes few groups: those of one layout adjacent, else as they are given."""
    layouts: list[Layout | None] = []
    places: list[int] = []
    for weights in adapters:
        layout = weights.padding.layout if _groups_take(weights) else None
        if layout not in layouts:
            layouts.append(layout)
        places.append(layouts.index(layout))
    return sorted(range(len(adapters)), key=places.__getitem__)


def _groups_take(weights: AdapterWeights) -> bool:
    return type(weights.kind) is Lora


def _member(segment: Segment) -> Member:
    if segment.weights is None:
        raise ValueError("a segment without an adapter is in no group")
    dropped = dropped_share(segment.weights.dropout) if segment.rows.dropped else 0.0
    return Member(segment.weights, 1.0 - dropped)
