"""Memory of a device, as the process that trains on it sees it."""

from __future__ import annotations

import resource
from pathlib import Path

_PAGE = resource.getpagesize()


def memory_used(device: str) -> tuple[int, int]:
    """Bytes in use and their peak so far.

    On a CUDA device these are torch's reserved bytes; on a CPU the resident set of this process.
    """
    if device.startswith("cuda"):
        import torch

        return torch.cuda.memory_reserved(device), torch.cuda.max_memory_reserved(device)
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    return pages * _PAGE, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_limit(device: str) -> int:
    """Bytes that an actor may use when nobody sets a limit: the whole accelerator, or 80 % of the machine's memory."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    import psutil

    return int(psutil.virtual_memory().total * 0.8)
