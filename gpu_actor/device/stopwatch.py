"""Points in time on a device's own clock."""

from __future__ import annotations

import time
from typing import Any

import torch


class Stopwatch:
    """On a CPU the time of day; on CUDA a mark between the kernels, which is passed when those before it have run.

    So the seconds of a step are those that it really took, and nobody waits for its kernels to know when it was done.
    """

    def __init__(self, device: str) -> None:
        """Nothing is marked yet.

        Args:
            device: `cpu`, `cuda` or `cuda:<n>`.
        """
        self._device = device
        self._on_cuda = device.startswith("cuda")

    def mark(self) -> Any:
        """This point in time."""
        if not self._on_cuda:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """From one mark to a later one; waits until the later one is passed."""
        if not self._on_cuda:
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
