"""Ranks padded with zeros, and where an adapter's values lie in the padded buffer.

Layers of a transformer resemble each other: the tensors of one place in all of them lie evenly apart, in both buffers.
They are copied together then, so that the number of kernels does not depend on the number of layers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from gpu_actor.adapters.kinds.base import AdapterKind, Shape
from gpu_actor.adapters.layer_plan import LayerPlan
from gpu_actor.adapters.layout import Layout

_RANK_STEP = 8  # 16 bytes in half precision: what grouped kernels read at once
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class _Tensor:
    """One tensor in both buffers: where it starts, its shape and strides; the factor on the update, if it is fast."""

    own_start: int
    padded_start: int
    shape: Shape
    own_steps: Shape
    padded_steps: Shape
    scaling: float | None

    @property
    def starts(self) -> tuple[int, int]:
        return self.own_start, self.padded_start


@dataclass(frozen=True)
class Padding:
    """What an adapter becomes when its ranks are padded to a multiple of 8.

    Attributes:
        layout: The padded layout; the adapter's own where it needs no padding.
        runs: All tensors, those that lie evenly apart as one.
    """

    layout: Layout
    runs: tuple[_Tensor, ...]

    @classmethod
    def of(cls, kind: AdapterKind, plans: Mapping[int, LayerPlan], own: Layout) -> Padding:
        """The padding of an adapter of this kind, layers and layout."""
        padded = {i: replace(plan, rank=-(-plan.rank // _RANK_STEP) * _RANK_STEP) for i, plan in plans.items()}
        layout = own if padded == plans else Layout.of({i: kind.trained(plan) for i, plan in padded.items()})
        places: dict[tuple[str, str], list[_Tensor]] = {}
        for index, plan in plans.items():
            for spec, wide in zip(own.specs[index], layout.specs[index], strict=True):
                tensor = _Tensor(
                    own.starts[index, spec.name],
                    layout.starts[index, spec.name],
                    spec.shape,
                    spec.steps,
                    wide.steps,
                    plan.scaling if spec.fast else None,
                )
                places.setdefault((_NUMBER.sub("", plan.name), spec.name), []).append(tensor)
        return cls(layout, tuple(itertools.chain.from_iterable(map(_runs, places.values()))))

    def pairs(self, own: torch.Tensor, row: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor, float | None]]:
        """Every run as views of both buffers; with the factor on the update where it is fast (a LoRA's B).

        Args:
            own: The adapter's buffer [size], or its gradient.
            row: A buffer of the padded layout [size].
        """
        for run in self.runs:
            yield (
                own.as_strided(run.shape, run.own_steps, own.storage_offset() + run.own_start),
                row.as_strided(run.shape, run.padded_steps, row.storage_offset() + run.padded_start),
                run.scaling,
            )


def _runs(tensors: list[_Tensor]) -> Iterator[_Tensor]:
    """Tensors of one place in the layers, those together that differ in nothing but where they start, and evenly so."""
    while tensors:
        first = tensors[0]
        count, apart = 1, None
        for earlier, later in itertools.pairwise(tensors):
            alike = replace(later, own_start=first.own_start, padded_start=first.padded_start) == first
            step = tuple(b - a for a, b in zip(earlier.starts, later.starts, strict=True))
            if not alike or step != (apart or step):
                break
            count, apart = count + 1, step
        if apart is None:
            yield first
        else:
            own, padded = apart
            yield replace(
                first,
                shape=(count, *first.shape),
                own_steps=(own, *first.own_steps),
                padded_steps=(padded, *first.padded_steps),
            )
        tensors = tensors[count:]
