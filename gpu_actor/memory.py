"""Memory of a device, as the process that trains on it sees it."""

from __future__ import annotations

import resource
import sys

import psutil

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


def memory_used(device: str) -> tuple[int, int]:
    """Bytes in use and their peak so far.

    On a CUDA device these are torch's reserved bytes; on a CPU the resident set of this process.
    """
    if device.startswith("cuda"):
        import torch

        return torch.cuda.memory_reserved(device), torch.cuda.max_memory_reserved(device)
    used = psutil.Process().memory_info().rss
    # the kernel keeps its own peak in coarser steps, so that it can lag behind
    return used, max(used, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT)


def memory_limit(device: str) -> int:
    """Bytes that an actor may use when nobody sets a limit: the whole accelerator, or 80 % of the machine's memory."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total * 0.8)
