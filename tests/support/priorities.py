"""What the kernel prefers: the priorities of a process's threads, each of which has its own on Linux."""

import contextlib
import os

import psutil


def priorities(pid):
    """Niceness and scheduling policy of the threads of a process."""
    found = set()
    for thread in psutil.Process(pid).threads():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            found.add((os.getpriority(os.PRIO_PROCESS, thread.id), os.sched_getscheduler(thread.id)))
    return found


def lowered(niceness):
    """What a niceness becomes for who comes after training."""
    return min(niceness + 5, 19)
