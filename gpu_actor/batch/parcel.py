"""Many small arrays in one copy to the device: each copy of its own costs a launch, and may wait for the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


class Parcel:
    """Arrays of 8-byte numbers (int64, float64) that travel together."""

    def __init__(self) -> None:
        self._arrays: list[npt.NDArray[Any]] = []

    def add(self, array: npt.NDArray[Any]) -> None:
        """Put in one more array, of any shape.

        Raises:
            ValueError: Its numbers have not 8 bytes.
        """
        if array.itemsize != 8:
            raise ValueError(f"a parcel takes numbers of 8 bytes, not {array.dtype}")
        self._arrays.append(array)

    def send(self, device: torch.device) -> list[torch.Tensor]:
        """All arrays on `device`, in the order in which they were added, as views of one tensor."""
        words = torch.from_numpy(np.concatenate([array.ravel().view(np.int64) for array in self._arrays]))
        if device.type == "cuda":
            words = words.pin_memory()  # else the copy waits for the kernels that are running
        there = words.to(device, non_blocking=True)
        parts = there.split([array.size for array in self._arrays])
        return [
            (part.view(torch.float64) if array.dtype == np.float64 else part).view(array.shape)
            for part, array in zip(parts, self._arrays, strict=True)
        ]
