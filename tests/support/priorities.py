"""What the kernel prefers: the priorities of a process's threads, each of which has its own on Linux."""

import os

import psutil


def priorities(pid):
    """Niceness and scheduling policy of the threads of a process."""
    threads = [thread.id for thread in psutil.Process(pid).threads()]
    return {(os.getpriority(os.PRIO_PROCESS, thread), os.sched_getscheduler(thread)) for thread in threads}
