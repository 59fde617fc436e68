"""What an error of torch says about the device: that its memory ran out, or that nothing runs on it any more."""

from __future__ import annotations

import torch

# Torch's allocator on a CPU raises a RuntimeError, with other words on Windows than elsewhere; so do CUDA's libraries.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "cuda error: out of memory",
    "cublas_status_alloc_failed",
)
# Words of CUDA (cudaGetErrorString) for what no kernel has done: the hardware, the driver, or their being away.
_DEVICE_GONE = (
    "ecc error",
    "nvlink",
    "hardware stack error",
    "no cuda-capable device",
    "device(s) is/are busy or unavailable",
    "device not ready",
    "driver",
    "system not yet initialized",
    "unknown error",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on an accelerator or on the CPU: less at a time may fit."""
    text = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(phrase in text for phrase in _OUT_OF_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Whether every further call to the accelerator fails as well, whoever makes it, until the process is started anew.

    So it is after a failed assertion or a bad address in a kernel.
    """
    kind: type[BaseException] | None = getattr(torch, "AcceleratorError", None)  # torch 2.8
    lost = isinstance(error, RuntimeError) and "CUDA error" in str(error) if kind is None else isinstance(error, kind)
    return lost and not is_out_of_memory(error)


def is_device_gone(error: BaseException) -> bool:
    """Whether a device is lost by itself, and not by what ran on it: an adapter may have had a part in all else."""
    text = str(error).lower()
    return is_device_lost(error) and any(phrase in text for phrase in _DEVICE_GONE)
