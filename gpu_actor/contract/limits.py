"""What a process may take of memory and of processor time: how this is set for everything that strangers send.

It imports little, so that `match_process` starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import resource
from typing import NamedTuple


class Limits(NamedTuple):
    """Of one process.

    Attributes:
        memory: Bytes that it may take beyond what it has when it begins.
        seconds: Of processor time, until it is granted more; to half a second.
    """

    memory: int
    seconds: int


def confine(limits: Limits) -> None:
    """Put this process under limits; the kernel is to end it first, should memory run out all the same.

    What counts is memory that can be written and is nobody else's (`RLIMIT_DATA`): files that are mapped to be read, as
    tables of the hub are, take none of it. Beyond it there is a `MemoryError`, beyond the time the end by `SIGXCPU`.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # not every system limits it
        _set_soft(resource.RLIMIT_DATA, _taken() + limits.memory)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    grant(limits.seconds)


def grant(seconds: int) -> None:
    """Let this process take so many seconds of processor time from now on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _set_soft(resource.RLIMIT_CPU, round(used.ru_utime + used.ru_stime) + seconds)


def lift() -> None:
    """Let this process take the processor time that it wants: it waits for work of others."""
    _set_soft(resource.RLIMIT_CPU, resource.getrlimit(resource.RLIMIT_CPU)[1])


def lift_memory() -> None:
    """Let this process take memory again, to say that it had too little."""
    _set_soft(resource.RLIMIT_DATA, resource.getrlimit(resource.RLIMIT_DATA)[1])


def _set_soft(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]  # of a shell or a container, perhaps: nobody may go beyond it
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _taken() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # another system than Linux
        return 0
