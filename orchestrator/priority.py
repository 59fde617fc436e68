"""The priority of processes that only watch: of a core that both want, who trains has it first."""

from __future__ import annotations

import contextlib
import os
import sys

import psutil

_NICER = 10  # weighs a tenth of a process that trains: where every core is busy, it still goes on
_NICEST = 19


def come_after_training() -> None:
    """Lower the priority of this process, for good, and of what it starts from now on.

    On Linux its threads become batch work as well: one that wakes up takes no core from a thread that runs.
    """
    if sys.platform != "linux":
        os.nice(_NICER)
        return
    for thread in psutil.Process().threads():  # each has a priority of its own there, and hands it on
        with contextlib.suppress(ProcessLookupError):  # it has ended
            niceness = os.getpriority(os.PRIO_PROCESS, thread.id)
            os.setpriority(os.PRIO_PROCESS, thread.id, min(niceness + _NICER, _NICEST))
            os.sched_setscheduler(thread.id, os.SCHED_BATCH, os.sched_param(0))
