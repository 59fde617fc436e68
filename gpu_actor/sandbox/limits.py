"""What a process may take of memory and of processor time."""

from __future__ import annotations

import contextlib
import math
import os
import resource
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Of one process.

    Attributes:
        memory: Bytes that it may take beyond what it has when it begins.
        seconds: Of processor time, until it is granted more.
    """

    memory: int
    seconds: int


def confine(limits: Limits) -> None:
    """Put this process under limits; the kernel is to end it first, should memory run out all the same.

    What counts is memory that can be written and is nobody else's (`RLIMIT_DATA`): files that are mapped to be read, as
    tables of the hub are, take none of it.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # not every system limits it
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (_taken() + limits.memory, hard))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    grant(limits.seconds)


def grant(seconds: int) -> None:
    """Let this process take so many seconds of processor time from now on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used.ru_utime + used.ru_stime) + seconds, hard))


def lift() -> None:
    """Let this process take the processor time that it wants: it waits for work of others."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))


def _taken() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # another system than Linux
        return 0
