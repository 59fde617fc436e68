"""Rotary positions whose frequencies depend on the length of the sequence.

"dynamic" (NTK-aware) scaling and "longrope" (arXiv 2402.13753) choose their frequencies by the longest position that
they are given, and dynamic scaling also remembers it. In a shared batch that would be a neighbour's. Here they see one
sequence at a time, and nothing from earlier.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from gpu_actor.operators.routing import Routing


def hook_rotary(model: nn.Module, routing: Routing) -> None:
    """Replace the rotary embeddings of `model` that depend on the length; others stay."""
    for name, module in list(model.named_modules()):
        kinds = getattr(module, "rope_type", None)
        kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
        if any(isinstance(kind, str) and ("dynamic" in kind or kind == "longrope") for kind in kinds):
            model.set_submodule(name, PerSequenceRotary(module, routing))


class PerSequenceRotary(nn.Module):
    """A rotary embedding that is evaluated for each sequence of the forward alone."""

    def __init__(self, base: nn.Module, routing: Routing) -> None:
        super().__init__()
        self.base = base
        self.routing = routing

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the positions of every sequence.

        Args:
            x: Gives device and dtype.
            position_ids: int64 [1, T] of a packed row, or [1 or B, L] of padded rows.
            args: Handed on (some models have frequencies per layer type).
            kwargs: Handed on.

        Returns:
            Two tensors [1, T, size] of a packed row; [B, L, size] of padded rows, zero in the padding.
        """
        if not self.routing.padded:
            parts = position_ids.split(list(self.routing.lengths), dim=1)
            pairs = [self._fresh()(x, part, *args, **kwargs) for part in parts]
            cosines, sines = zip(*pairs, strict=True)
            return torch.cat(cosines, dim=1), torch.cat(sines, dim=1)
        width = position_ids.shape[1]
        rows = position_ids.expand(len(self.routing.lengths), width)
        pairs = [
            self._fresh()(x, row[None, :length], *args, **kwargs)
            for row, length in zip(rows, self.routing.lengths, strict=True)
        ]
        padded = [[nn.functional.pad(t, (0, 0, 0, width - t.shape[1])) for t in pair] for pair in pairs]
        return torch.cat([pair[0] for pair in padded]), torch.cat([pair[1] for pair in padded])

    def _fresh(self) -> nn.Module:
        """The embedding as it was loaded: what it notes of a sequence goes to a copy."""
        fresh = copy.copy(self.base)
        fresh._buffers = dict(self.base._buffers)
        return fresh
