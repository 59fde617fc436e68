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
        """Layer index -> its tensors, views of `buffer` [..., size] of the shape [..., *shape].

        The values of a row of the buffer lie side by side.
        """
        before, start = (*buffer.shape[:-1],), buffer.storage_offset()
        steps = buffer.stride()[:-1]
        return {
            index: tuple(
                # one operation each: of a large model there are a thousand
                buffer.as_strided((*before, *s.shape), (*steps, *s.steps), start + self.starts[index, s.name])
                for s in layer
            )
            for index, layer in self.specs.items()
        }
