"""What processes and their threads cost: processor seconds, looked at again and again, for any window of time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil

KindOf = Callable[[Sequence[str]], str]
"""What a process is, by its command line."""


class Watch:
    """Processor seconds of some processes and of all that come from them, as time goes on.

    Attributes:
        times: Unix time of each look.
    """

    def __init__(self, kind_of: KindOf, threads_of: str = "") -> None:
        """Nothing was seen yet.

        Args:
            kind_of: What a process is; asked at each look, since a worker of Ray becomes an actor after its start.
            threads_of: A kind of process whose threads are looked at one by one as well.
        """
        self.times: list[float] = []
        # series as long as `times`, 0 before there was such a process or thread
        self._spent: dict[int, list[float]] = {}
        self._threads: dict[tuple[int, int], list[float]] = {}  # by process and thread: processor seconds
        self._waited: dict[tuple[int, int], list[float]] = {}  # and seconds without the core that it wanted
        self._kinds: dict[int, str] = {}
        self._kind_of, self._threads_of = kind_of, threads_of

    def look(self, roots: Sequence[psutil.Process]) -> None:
        """Look at some processes and their children."""
        for one in [process for root in roots for process in [root, *_children(root)]]:
            try:
                with one.oneshot():
                    spent, line = one.cpu_times(), one.cmdline()
                threads = one.threads() if self._threads_of and self._kind(one.pid, line) == self._threads_of else ()
            except psutil.Error:  # it has ended
                continue
            self._kind(one.pid, line)
            self._note(self._spent.setdefault(one.pid, []), spent.user + spent.system)
            for thread in threads:
                key = one.pid, thread.id
                self._note(self._threads.setdefault(key, []), thread.user_time + thread.system_time)
                self._note(self._waited.setdefault(key, []), _waited(*key))
        self.times.append(time.time())

    def _kind(self, pid: int, line: Sequence[str]) -> str:
        if line or pid not in self._kinds:  # one that is ending has no name
            self._kinds[pid] = self._kind_of(line)
        return self._kinds[pid]

    def _note(self, series: list[float], value: float) -> None:
        series += [series[-1] if series else 0.0] * (len(self.times) - len(series))
        series.append(value)

    def between(self, start: float, end: float) -> dict[str, float]:
        """Processor seconds of each kind of process between two moments."""
        sums: dict[str, float] = {}
        for pid, series in self._spent.items():
            sums[self._kinds[pid]] = sums.get(self._kinds[pid], 0.0) + self._of(series, start, end)
        return sums

    def busiest_thread(self, start: float, end: float) -> tuple[float, float | None]:
        """Processor seconds between two moments of the thread that had most of them, and for how long it wanted a core.

        The second is what other processes cost it in time, without the noise of the machine's own speed; None where the
        kernel does not count it.
        """
        if not self._threads:
            return 0.0, None
        spent, busiest = max((self._of(series, start, end), key) for key, series in self._threads.items())
        waited = self._waited[busiest]
        return spent, self._of(waited, start, end) if waited[-1] else None

    def _of(self, series: Sequence[float], start: float, end: float) -> float:
        at = np.interp([start, end], self.times[: len(series)], series)
        return float(at[1] - at[0])


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = process.children(recursive=True)
    except psutil.Error:
        return []
    return found


def _waited(process: int, thread: int) -> float:
    """Seconds for which a thread could have run and had no core, since it began; 0 where the kernel does not count."""
    try:
        return int(Path(f"/proc/{process}/task/{thread}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0
