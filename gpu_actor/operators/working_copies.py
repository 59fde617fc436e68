"""LoRA adapters of one layout side by side, in the number format that the base computes in.

An adapter's own values stay fp32, in a flat buffer of its own. For one forward and its backward those of a group of
adapters are copied into one tensor, a row for each, their ranks padded with zeros; so the matrices of one layer are a
view [groups, r, in] of it, and one product serves them all. Their gradients stay as the products gave them until the
backward is over; then they become one tensor of the same form, in one kernel for all layers, and are added to the
adapters' own: what breaks off half-way leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from gpu_actor.adapters.layout import Layout
from gpu_actor.adapters.weights import AdapterWeights


@dataclass(frozen=True)
class Member:
    """One adapter of a group, as one forward uses it.

    Attributes:
        weights: The adapter.
        kept: Share of the inputs that dropout keeps; 1 where there is no dropout.
    """

    weights: AdapterWeights
    kept: float

    @property
    def layout(self) -> Layout:
        """How a row of the working copies is laid out for it."""
        return self.weights.padding.layout

    def factors(self) -> dict[int, float]:
        """Layer index -> factor on the update: dropout's 1 / (1 - p) is folded in, so that no input is scaled."""
        return {index: plan.scaling / self.kept for index, plan in self.weights.plans.items()}


@dataclass(frozen=True)
class _Piece:
    """A part of an adapter's flat buffer (values or gradient), and the same part of the copies (or the sums).

    `copy = factor * own` for values, and by the chain rule `own gradient = factor * gradient of the copy`.
    """

    own: torch.Tensor
    copy: torch.Tensor
    factor: float


class WorkingCopies:
    """A and B of a group of adapters. The copy of B holds the factor on the update as well.

    Attributes:
        layers: Layer index -> A [groups, r, in] and B [groups, out, r]; they change nothing and require no gradient.
    """

    def __init__(self, members: Sequence[Member], device: torch.device, dtype: torch.dtype) -> None:
        """Copy the values of adapters that have the same padded layout."""
        self._members = members
        self._layout = members[0].layout
        self._values = torch.zeros(len(members), self._layout.size, device=device, dtype=dtype)
        self._gradients: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.layers = self._layout.views(self._values)
        pieces = list(self._pieces(self._values, gradient=False))
        torch._foreach_copy_([piece.copy for piece in pieces], [piece.own for piece in pieces])
        scaled = [piece for piece in pieces if piece.factor != 1.0]
        if scaled:
            torch._foreach_mul_([piece.copy for piece in scaled], [piece.factor for piece in scaled])

    def add_gradients(self, index: int, of_a: torch.Tensor, of_b: torch.Tensor) -> None:
        """Add to the sums of one layer: of_a [groups, r, in], of_b [groups, out, r], which nobody else holds."""
        if index not in self._gradients:
            self._gradients[index] = of_a, of_b
            return
        for total, more in zip(self._gradients[index], (of_a, of_b), strict=True):
            total += more

    def hand_on_gradients(self) -> None:
        """Add the sums to the adapters' own gradients: the backward is over."""
        if not self._gradients:
            return
        sums = self._joined()
        self._gradients = {}
        for piece in self._pieces(sums, gradient=True):
            piece.own.add_(piece.copy, alpha=piece.factor)

    def _joined(self) -> torch.Tensor:
        """The sums of all layers in rows [groups, size], laid out as the values are."""
        given = {
            self._layout.starts[index, spec.name]: tensor.flatten(1)
            for index, tensors in self._gradients.items()
            for spec, tensor in zip(self._layout.specs[index], tensors, strict=True)
        }
        parts: list[torch.Tensor] = []
        end = 0
        for start, tensor in sorted(given.items(), key=lambda one: one[0]):
            parts += [*self._zeros(start - end), tensor]
            end = start + tensor.shape[1]
        return torch.cat([*parts, *self._zeros(self._layout.size - end)], dim=1)

    def _zeros(self, values: int) -> list[torch.Tensor]:
        """What fills a gap [groups, values] of the layout, if it is one."""
        return [self._values.new_zeros(1, values).expand(len(self._members), values)] if values else []

    def _pieces(self, rows: torch.Tensor, *, gradient: bool) -> Iterator[_Piece]:
        """Every adapter in as few pieces as its layout and its factors allow."""
        for number, member in enumerate(self._members):
            weights, factors = member.weights, member.factors()
            flat = weights.gradient if gradient else weights.flat.data
            if weights.layout is member.layout and len(set(factors.values())) == 1:
                slow, fast = slice(0, self._layout.fast_start), slice(self._layout.fast_start, None)
                yield _Piece(flat[slow], rows[number, slow], 1.0)
                yield _Piece(flat[fast], rows[number, fast], next(iter(factors.values())))
                continue
            for own, copy, scaling in weights.padding.pairs(flat, rows[number]):
                yield _Piece(own, copy, 1.0 if scaling is None else scaling / member.kept)
