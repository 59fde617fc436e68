"""Memory of a device, as the process that trains on it sees it."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from pathlib import Path

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
ACCELERATOR_RESERVE = 1024 * 2**20  # bytes of each actor's context, kernels and fragmentation
_CPU_SHARE = 0.8  # of a machine's memory, for actors without a limit of their own
_FORGET_PEAK = "5"  # what Linux wants in clear_refs to set a process's peak resident set to what it is now


class MemoryMeter:
    """Bytes in use on one device, and their peak since the last `restart`.

    On a CUDA device these are the bytes that torch's allocator has given out; on a CPU the resident set of this
    process, whose peak Linux can reset (`/proc/self/clear_refs`). Where it cannot, the peak is that of the whole run.
    """

    def __init__(self, device: str) -> None:
        """Nothing is read yet.

        Args:
            device: `cpu`, `cuda` or `cuda:<n>`.
        """
        self.device = device
        self.on_cuda = device.startswith("cuda")

    def restart(self) -> None:
        """Forget the peak: from now on it is that of what follows."""
        if self.on_cuda:
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
            return
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text(_FORGET_PEAK)

    def used(self) -> int:
        """Bytes in use now."""
        if self.on_cuda:
            import torch

            return int(torch.cuda.memory_allocated(self.device))
        import psutil

        return int(psutil.Process().memory_info().rss)

    def peak(self) -> int:
        """The highest use since `restart`."""
        if self.on_cuda:
            import torch

            return int(torch.cuda.max_memory_allocated(self.device))
        return max(_high_water(), self.used())

    def reserved(self) -> int:
        """Bytes that are taken from the device, in use or not."""
        if self.on_cuda:
            import torch

            return int(torch.cuda.memory_reserved(self.device))
        return self.used()

    def free(self, limit: int) -> int:
        """Bytes that can still be taken: up to the actor's limit, and no more than the device has left."""
        if self.on_cuda:
            import torch

            left = int(torch.cuda.mem_get_info(self.device)[0]) + self.reserved() - self.used()
        else:
            import psutil

            left = int(psutil.virtual_memory().available)
        return max(0, min(limit - self.used(), left))

    def release(self) -> None:
        """Give memory that lies idle in the allocator back to the device."""
        if self.on_cuda:
            import torch

            torch.cuda.empty_cache()
            return
        with contextlib.suppress(OSError, AttributeError):  # another libc than glibc has no such call
            ctypes.CDLL(None).malloc_trim(0)


def _high_water() -> int:
    """The peak resident set of this process since it was last reset."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT


def memory_limit(device: str, share: float = 1.0) -> int:
    """Bytes that an actor may use when nobody sets a limit: its accelerator, or 80 % of the machine's memory.

    In a container the machine's memory is what the container may use: beyond it the kernel kills.

    Args:
        device: `cpu`, `cuda` or `cuda:<n>`.
        share: Of an accelerator, that is the actor's.
    """
    if device.startswith("cuda"):
        import torch

        return accelerator_limit(int(torch.cuda.get_device_properties(device).total_memory), share)
    import psutil

    return int(min([psutil.virtual_memory().total, *control_group_limits()]) * _CPU_SHARE)


def accelerator_limit(total: int, share: float) -> int:
    """Bytes that an actor on an accelerator may have allocated: its share, less what no allocator counts.

    Args:
        total: Bytes of the accelerator.
        share: Of it, that is the actor's.
    """
    share_bytes = int(total * min(1.0, share))
    return max(share_bytes - ACCELERATOR_RESERVE, share_bytes // 2)


def device_name(device: str) -> str:
    """What an accelerator calls itself; nothing for a CPU."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    return ""


def control_group_limits(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Bytes that the control groups of this process allow: its own group, and those that hold it.

    A container may see its group under the path that the host knows, or as the root of what it sees.

    Args:
        root: Where they are mounted.
        groups: File that names the groups of this process, one hierarchy a line: number, controllers, path.
    """
    limits = []
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        group = top / path.lstrip("/")
        for folder in [group, *group.parents]:
            if folder.is_relative_to(top):
                with contextlib.suppress(OSError, ValueError):  # no such group here, or its limit is `max`
                    limits.append(int((folder / name).read_text()))
    return limits
