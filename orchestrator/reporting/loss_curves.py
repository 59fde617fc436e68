"""How the losses of running jobs went of late: few enough points for one line of a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MOST_POINTS = 48  # of one job; beyond it every second one goes


class _Line:
    """Losses at steps that lie about evenly apart."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []
        self._apart = 1  # steps from one point to the next, at least

    def add(self, step: int, loss: float) -> None:
        while self.points and self.points[-1][0] > step:  # it goes on from a checkpoint
            self.points.pop()
            self._apart = 1
        if self.points and step < self.points[-1][0] + self._apart:
            return
        self.points.append((step, loss))
        if len(self.points) > _MOST_POINTS:
            del self.points[1::2]
            self._apart = max(1, (self.points[-1][0] - self.points[0][0]) // len(self.points))


class LossCurves:
    """The losses of the running jobs, as this process has seen them."""

    def __init__(self) -> None:
        """Nothing was seen yet."""
        self._lines: dict[str, _Line] = {}

    def note(self, counters: Mapping[str, Mapping[str, Any]]) -> None:
        """Take in the latest progress of all jobs that run; the others are forgotten."""
        self._lines = {job_id: self._lines.get(job_id) or _Line() for job_id in counters}
        for job_id, progress in counters.items():
            if progress.get("loss") is not None:
                self._lines[job_id].add(progress["step"], progress["loss"])

    def of(self, job_id: str) -> list[float]:
        """The losses of a job from its start to now; none if it does not run."""
        line = self._lines.get(job_id)
        return [loss for _, loss in line.points] if line else []
