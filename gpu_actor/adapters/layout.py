"""Where the tensors of one adapter lie in one flat buffer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gpu_actor.adapters.kinds.base import TensorSpec

Views = dict[int, tuple[torch.Tensor, ...]]

_ALIGNMENT = 16  # values: each tensor starts on a 64-byte border of an fp32 buffer, a 32-byte one in half precision


@dataclass(frozen=True)
class Layout:
    """Where each tensor starts. Those that LoRA+ trains faster lie behind the others.

    Attributes:
        specs: Layer index -> its tensors.
        starts: (Layer index, tensor name) -> first value.
        fast_start: Where the fast tensors begin.
        size: Length of the buffer in values; the gaps between tensors stay zero.
    """

    specs: Mapping[int, tuple[TensorSpec, ...]]
    starts: Mapping[tuple[int, str], int]
    fast_start: int
    size: int

    @classmethod
    def of(cls, specs: Mapping[int, tuple[TensorSpec, ...]]) -> Layout:
        """One tensor behind the other, in the order of the layers."""
        starts: dict[tuple[int, str], int] = {}
        size = fast_start = 0
        for fast in (False, True):
            fast_start = size
            for index, layer in specs.items():
                for spec in layer:
                    if spec.fast is fast:
                        starts[index, spec.name] = size
                        size += -(-spec.values // _ALIGNMENT) * _ALIGNMENT
        return cls(specs, starts, fast_start, size)

    def views(self, buffer: torch.Tensor) -> Views:
        """Layer index -> its tensors, views of `buffer` [..., size] of the shape [..., *shape]."""
        return {
            index: tuple(buffer.narrow(-1, self.starts[index, s.name], s.values).unflatten(-1, s.shape) for s in layer)
            for index, layer in self.specs.items()
        }
