"""Numbers on their way from the device: sent now, read later, so that nobody waits for the kernels in between."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch


class Readback:
    """A few vectors that come from the device in one copy."""

    def __init__(self, vectors: Sequence[torch.Tensor]) -> None:
        """Start the copy.

        Args:
            vectors: Floating-point numbers, each [n] with an n of its own; at least one.
        """
        self._sizes = [len(vector) for vector in vectors]
        together = torch.cat(list(vectors))
        self._there: torch.cuda.Event | None = None
        if together.device.type == "cuda":
            self._values = torch.empty(together.shape, dtype=together.dtype, pin_memory=True)
            self._values.copy_(together, non_blocking=True)
            self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._there.record(torch.cuda.current_stream(together.device))
        else:
            self._values = together

    def read(self) -> list[list[float]]:
        """The numbers of every vector; waits until they are there."""
        if self._there is not None:
            self._there.synchronize()  # type: ignore[no-untyped-call]
        values = iter(self._values.tolist())
        return [list(islice(values, size)) for size in self._sizes]
