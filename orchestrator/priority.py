"""The priority of processes that only watch: of a core that both want, who trains has it first."""

from __future__ import annotations

import contextlib
import os
import sys

_NICER = 5  # weighs a third of a process that trains: where every core is busy, it still goes on
_NICEST = 19


def come_after_training() -> None:
    """Lower the priority of this process, for good, and of what it starts from now on, as far as that is allowed.

    On Linux its threads become batch work as well: one that wakes up takes no core from a thread that runs. That counts
    everywhere; niceness may count within a session only (autogroups).
    """
    if sys.platform != "linux":
        os.nice(_NICER)
        return
    done: set[str] = set()
    while new := set(os.listdir("/proc/self/task")) - done:  # until none was started meanwhile
        for thread in new:  # each has a priority of its own there, and hands it on
            _lower(int(thread))
        done |= new


def _lower(thread: int) -> None:
    with contextlib.suppress(OSError):  # it has ended, or a sandbox allows no such thing
        os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + _NICER, _NICEST))
