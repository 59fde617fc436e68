"""Who trained where when, and how full each place was: what a picture of a real run is drawn from."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from gpu_actor.contract.report import ActorReport

if TYPE_CHECKING:
    from orchestrator.store.store import Store

_MOST_POINTS = 2000  # of one place; beyond it every second one goes
_CHANGE = 0.005  # share of the limit that is worth a point
_EVERY_S = 60.0  # a point at least so often


class MemoryPoint(NamedTuple):
    """The share of a memory limit that was in use at a time (Unix seconds)."""

    time: float
    share: float


class MemoryLine:
    """The share of its memory limit that a place has in use, over time; a bounded number of points.

    Attributes:
        points: In the order of time.
    """

    def __init__(self) -> None:
        self.points: list[MemoryPoint] = []

    def add(self, moment: float, share: float) -> None:
        """Note the share in use; left out where it says nothing new."""
        if self.points:
            last = self.points[-1]
            if abs(share - last.share) < _CHANGE and moment - last.time < _EVERY_S:
                return
        self.points.append(MemoryPoint(moment, share))
        if len(self.points) > _MOST_POINTS:
            pairs = zip(self.points[0:-1:2], self.points[1::2], strict=True)
            kept = [max(pair, key=lambda point: point.share) for pair in pairs]  # a peak stays
            self.points = [*kept, self.points[-1]]


class Timeline:
    """Keeps the memory lines of an orchestrator, and shows them with the stays of its store.

    The lines are those of this process: who was where when outlives it, how full the places were does not.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._memory: dict[str, MemoryLine] = defaultdict(MemoryLine)

    def note(self, reports: Iterable[tuple[str, ActorReport]]) -> None:
        """Take in the latest reports, by place."""
        now = time.time()
        for place, report in reports:
            if report.memory_limit:
                self._memory[place].add(now, report.memory_used / report.memory_limit)

    def view(self, ids: Collection[str]) -> dict[str, Any]:
        """The stays of some jobs and the memory of all places, as plain values.

        Args:
            ids: Of the jobs.

        Returns:
            `now`; `stays`, each with `job_id`, `place`, `since` and `until` (null: it is there); and `memory`, points
            of Unix seconds and share by place.
        """
        wanted = set(ids)
        stays = [
            {"job_id": stay.job_id, "place": place_of(stay.actor), "since": stay.since, "until": stay.until}
            for stay in self._store.stays()
            if stay.job_id in wanted
        ]
        return {
            "now": time.time(),
            "stays": stays,
            "memory": {name: [tuple(point) for point in line.points] for name, line in self._memory.items()},
        }


def place_of(actor: str) -> str:
    """The place in an actor's name: `cpu:0` of `smollm2-135m@cpu:0#3f9a`."""
    return actor.rpartition("@")[2].rpartition("#")[0]
