"""Which base model each place hosts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from orchestrator.scheduler.columns import Jobs, Places
from orchestrator.scheduler.room import Ints, Mask, PlaceMemory

_CLEARLY = 1.5  # times its loss by which a change of base models must gain


class _Change(NamedTuple):
    """A place, and the number of the base model that it changes to."""

    place: int
    base: int


def change_bases(places: Places, jobs: Jobs, bases: Sequence[str], queued: Sequence[int]) -> dict[int, str]:
    """Give idle places to base models that queued jobs wait for; returns place -> base model.

    Args:
        places: With everything planned that could be.
        jobs: All jobs.
        bases: Names of the base models.
        queued: Jobs that are attached nowhere, the best first.
    """
    rehosts: dict[int, str] = {}

    def rehost(place: int, base: int) -> None:
        rehosts[place] = bases[base]
        places.host(place, bases[base])

    for place in range(places.count):
        job = int(places.kept_for[place])
        if job >= 0 and places.base[place] != jobs.base[job] and places.idle(place):
            rehost(place, int(jobs.base[job]))
    idle = [place for place in range(places.count) if places.idle(place)]
    if not idle:
        return rehosts
    planned = {job for place in np.flatnonzero(places.ready) for job in places.planned[place]}
    waiting = [job for job in queued if job not in planned]

    def start(job: int) -> None:
        view, base = jobs.views[job], int(jobs.base[job])
        candidates = [
            place
            for place in idle
            if place not in rehosts
            and places.base[place] != base
            and places.can_load(place, view.base_model)
            and places.fits_alone(place, view)
        ]
        if candidates:
            rehost(
                min(
                    candidates,
                    key=lambda p: (places.views[p].pinned is None, places.views[p].base_model is not None, p),
                ),
                base,
            )

    for job in waiting:
        if not places.hosts(int(jobs.base[job])).any():
            start(job)
    counted: Counter[int] = Counter()
    for job in waiting:
        base = int(jobs.base[job])
        counted[base] += 1
        loading = int((places.hosts(base) & places.starting).sum())
        if loading < counted[base] and len(rehosts) < len(idle):
            start(job)
    return rehosts


def rebalance(places: Places, jobs: Jobs, bases: Sequence[str]) -> dict[int, str]:
    """Change the base model of places where that saves clearly more than it costs; returns place -> base model.

    With F_b(M) the weighted seconds that the jobs of base model b wait for each other on M places, one place more for
    b gains F_b(M_b) - F_b(M_b + 1); one less for c loses F_c(M_c - 1) - F_c(M_c). A place changes from c to b if the
    gain exceeds 1.5 times the loss and the loading, which is charged to the jobs that wait for it.

    First come places without jobs: they change at once. Then, with these counted as changed, all others that may:
    they are only closed, so that this plan empties them and the next one changes them. The next look at the cluster
    shows what the second part started from, and so it closes the same places, in the same order; and when they are
    empty, they are the first part. Nothing here depends on how many jobs are where. So a plan holds while it is
    carried out.
    """
    if len(bases) < 2 and bool((places.base >= 0).all()):
        return {}
    backlogs = [_Backlog(jobs, np.flatnonzero((jobs.base == number) & ~jobs.lost)) for number in range(len(bases))]
    sources = [place for place in range(places.count) if _may_change(places, jobs, place)]
    rehosts: dict[int, str] = {}
    for change in _changes(places, backlogs, bases, [place for place in sources if places.empty(place)]):
        rehosts[change.place] = bases[change.base]
    for change in _changes(places, backlogs, bases, [place for place in sources if place not in rehosts]):
        places.closed[change.place] = True
    return rehosts


def _changes(places: Places, backlogs: Sequence[_Backlog], bases: Sequence[str], sources: list[int]) -> list[_Change]:
    """Changes that are worth it, the best first; each is planned before the next one is looked for."""
    changes: list[_Change] = []
    while sources:
        worth = {
            change: _worth(places, backlogs, change.place, change.base, bases[change.base])
            for change in _possible_changes(places, sources, bases)
        }
        gaining = sorted(
            (change for change in worth if worth[change] > 0),
            key=lambda change: (worth[change], -change.place, change.base),
            reverse=True,
        )
        best = next((change for change in gaining if not _needed(places, backlogs, bases, change.place)), None)
        if best is None:
            break
        sources.remove(best.place)
        places.host(best.place, bases[best.base])
        changes.append(best)
    return changes


class _Backlog:
    """The jobs of one base model, shortest first."""

    def __init__(self, jobs: Jobs, members: Ints) -> None:
        seconds = jobs.left[members] * (jobs.shared[members] + jobs.added[members])
        by = np.argsort(seconds / jobs.weight[members], kind="stable")
        self._seconds, self._weight = seconds[by], jobs.weight[members][by]
        self.weight = float(self._weight.sum())
        self._age = jobs.age[members][by] * self._weight
        self._waits_on: dict[int, float] = {}
        self._bytes, self._worst = jobs.bytes[members][by], jobs.worst[members][by]

    def fits(self, memory: PlaceMemory) -> Mask:
        """Which of the jobs fit alone on a place."""
        return memory.holds_alone(self._bytes, self._worst)

    def waits(self, places: int, load: float) -> float:
        """F: weighted seconds that the jobs wait for each other, if they go round the places shortest first.

        Args:
            places: How many; without any they wait for what `homeless` says.
            load: Seconds.
        """
        if not places:
            return self.waits(1, load) + self.homeless(np.ones(len(self._seconds), bool), load)
        if places not in self._waits_on:
            count = len(self._seconds)
            rows = -(-count // places)
            table = np.zeros(rows * places)
            table[:count] = self._seconds
            starts = np.cumsum(table.reshape(rows, places), axis=0).ravel()[:count] - self._seconds
            self._waits_on[places] = float(np.dot(starts, self._weight))
        return self._waits_on[places]

    def homeless(self, some: Mask, load: float) -> float:
        """Weighted seconds that jobs without any place wait: for a load there and back, and as long again as they
        are old, so that none waits for ever for a base model whose jobs come and go.
        """
        return 2 * load * self.weight_of(some) + max(0.0, float(self._age[some].sum()))

    def last_weight(self, places: int) -> float:
        """Weight of the jobs that come to the last of some places, if they go round them shortest first."""
        return float(self._weight[places - 1 :: places].sum())

    def weight_of(self, some: Mask) -> float:
        """Weight of some of the jobs."""
        return float(self._weight[some].sum())


def _may_change(places: Places, jobs: Jobs, place: int) -> bool:
    """Empty, or ready with jobs that may all be taken off, or are on their way."""
    if places.views[place].pinned is not None and places.views[place].base_model is not None:
        return False
    return places.stable(place) and all(jobs.movable[job] for job in places.attached[place])


def _only_here(places: Places, backlog: _Backlog, number: int, ref: str, place: int) -> Mask:
    """Which jobs of a base model fit on a place and on no other that hosts it."""
    others = {places.memory(other, ref) for other in np.flatnonzero(places.hosts(number)).tolist() if other != place}
    mask = backlog.fits(places.memory(place, ref))
    for memory in others:
        mask &= ~backlog.fits(memory)
    return mask


def _needed(places: Places, backlogs: Sequence[_Backlog], bases: Sequence[str], place: int) -> bool:
    """Whether other places host its base model, and a job of it fits on none of them but here."""
    base = int(places.base[place])
    if base < 0 or int(places.hosts(base).sum()) < 2:
        return False
    return bool(_only_here(places, backlogs[base], base, bases[base], place).any())


def _possible_changes(places: Places, sources: Sequence[int], bases: Sequence[str]) -> list[_Change]:
    """Places and base models that they could change to; of places that are alike only the first."""
    counted: set[object] = set()
    changes = []
    for place in sorted(sources):
        view = places.views[place]
        alike = (int(places.base[place]), view.pinned, view.memory_limit, view.shape, view.load_seconds)
        kind = (alike, *sorted(view.loads.items()), *sorted(view.barred))
        if kind in counted:
            continue
        counted.add(kind)
        changes += [
            _Change(place, base)
            for base, ref in enumerate(bases)
            if base != places.base[place] and places.can_load(place, ref)
        ]
    return changes


def _worth(places: Places, backlogs: Sequence[_Backlog], place: int, base: int, ref: str) -> float:
    """Weighted seconds that a change gains, beyond what it must."""
    load, old, backlog = places.views[place].seconds_to_load(ref), int(places.base[place]), backlogs[base]
    if not backlog.fits(places.memory(place, ref)).any():
        return 0.0
    hosts = int(places.hosts(base).sum())
    gain = 0.0
    if hosts:
        gain = backlog.waits(hosts, load) - backlog.waits(hosts + 1, load) - load * backlog.last_weight(hosts + 1)
    homeless = _only_here(places, backlog, base, ref, place)
    if homeless.any():
        gain = max(gain, backlog.homeless(homeless, load) - load * backlog.weight_of(homeless))
    loss = 0.0
    if old >= 0 and backlogs[old].weight:
        rest, back = int(places.hosts(old).sum()), float(places.load[place])
        loss = backlogs[old].waits(rest - 1, back) - backlogs[old].waits(rest, back)
    return gain - _CLEARLY * loss
