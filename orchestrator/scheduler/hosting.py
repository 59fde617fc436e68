"""Which base model each place hosts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from orchestrator.scheduler.job_columns import Jobs
from orchestrator.scheduler.place_columns import Places
from orchestrator.scheduler.room import Floats, Ints, Mask, PlaceMemory

_GUESS = 10.0  # times that the seconds of a base model may be what was guessed


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
    """Change the base model of places where that does more for the jobs that wait; returns place -> base model.

    The jobs of a base model go round its places, shortest first. What a place does there is the best weight per
    second of any beginning of its share, and for a base model that it would have to load the loading counts among
    the seconds. With W_b and P_b of the best beginning elsewhere, and w and p of one here, the place changes if

        W_b p  >  w (L_b + P_b + L) + N L      for every beginning of its share here:

    staying would cost those elsewhere more than leaving costs those here, until the place is back. L is the loading on
    its return, which takes time from all who wait, N for each place; it is 0 where another place hosts the base model
    as well. (On one place it is the interchange of two batches, as in Smith's rule for families of jobs with set-up
    times.)

    First come places without jobs: they change at once. Then, with these counted as changed, all others that may:
    they are only closed, so that this plan empties them and the next one changes them. The next look at the cluster
    shows what the second part started from, and so it closes the same places, in the same order; and when they are
    empty, they are the first part. Nothing here depends on how many jobs are where. So a plan holds while it is
    carried out.

    Args:
        places: Without anything planned yet.
        jobs: With the weights that their waiting has given them.
        bases: Names of the base models.
    """
    if len(bases) < 2 and bool((places.base >= 0).all()):
        return {}
    classes = _Classes(places, jobs, bases)
    sources = [place for place in range(places.count) if _may_change(places, jobs, place)]
    rehosts: dict[int, str] = {}
    for change in classes.changes([place for place in sources if places.empty(place)]):
        rehosts[change.place] = bases[change.base]
    for change in classes.changes([place for place in sources if place not in rehosts]):
        places.closed[change.place] = True
    return rehosts


def _may_change(places: Places, jobs: Jobs, place: int) -> bool:
    """Empty, or ready with jobs that may all be taken off, or are on their way."""
    if places.views[place].pinned is not None and places.views[place].base_model is not None:
        return False
    return places.stable(place) and all(jobs.movable[job] for job in places.attached[place])


class _Beginnings(NamedTuple):
    """Of some jobs in a row the first, the first two, and so on.

    Attributes:
        weight: Of each beginning.
        seconds: Of each, one job after the other.
    """

    weight: Floats
    seconds: Floats


class _Backlog:
    """The jobs of one base model, shortest first."""

    def __init__(self, jobs: Jobs, members: Ints) -> None:
        seconds = jobs.left[members] * (jobs.shared[members] + jobs.added[members])
        by = np.argsort(seconds / jobs.weight[members], kind="stable")
        self._seconds, self._weight = seconds[by], jobs.weight[members][by]
        self._bytes, self._worst = jobs.bytes[:, members[by]], jobs.worst[:, members[by]]
        self._ends = np.cumsum(self._seconds)

    def fits(self, memory: PlaceMemory) -> Mask:
        """Which of the jobs fit alone on a place."""
        return memory.holds_alone(self._bytes, self._worst)

    def of(self, some: Mask) -> _Beginnings:
        """Of some of the jobs."""
        return _Beginnings(np.cumsum(self._weight[some]), np.cumsum(self._seconds[some]))

    def share(self, places: int, fits: Mask, done: float = 0.0) -> _Beginnings:
        """Of the jobs that come to the last of some places, if all go round them.

        Args:
            places: How many.
            fits: Which jobs fit there; the others are passed over.
            done: Seconds of work that the others will have done before this place begins.
        """
        some = np.zeros(len(fits), bool)
        some[int(np.searchsorted(self._ends, done, side="right")) + places - 1 :: places] = True
        return self.of(some & fits)


class _Classes:
    """The jobs as classes, one for each base model, and what a place does by changing from one to another."""

    def __init__(self, places: Places, jobs: Jobs, bases: Sequence[str]) -> None:
        self._places, self._bases = places, bases
        self._backlogs = [_Backlog(jobs, np.flatnonzero((jobs.base == n) & ~jobs.lost)) for n in range(len(bases))]
        self._crowd = float(jobs.class_weight[~jobs.lost].sum()) / max(1, places.count)  # N

    def changes(self, sources: list[int]) -> list[_Change]:
        """Changes that are worth it, the best first; each is planned before the next one is looked for."""
        places, changes = self._places, []
        while sources:
            worth = {change: self._worth(change) for change in _possible_changes(places, sources, self._bases)}
            gaining = sorted(
                (change for change in worth if worth[change] > 0),
                key=lambda change: (worth[change], -change.place, change.base),
                reverse=True,
            )
            best = next((change for change in gaining if not self._needed(change.place)), None)
            if best is None:
                break
            sources.remove(best.place)
            places.host(best.place, self._bases[best.base])
            changes.append(best)
        return changes

    def _worth(self, change: _Change) -> float:
        """Weight per second that a change gains beyond what the place does by staying."""
        places = self._places
        place, old = change.place, int(places.base[change.place])
        there = self._there(change)
        if not len(there.weight):
            return 0.0
        load = places.views[place].seconds_to_load(self._bases[change.base])
        hosts = int(places.hosts(old).sum()) if old >= 0 else 0
        here = self._backlogs[old].share(hosts, self._fitting(place, old)) if hosts else None
        left_behind = here is not None and bool(len(here.weight))
        guessed = places.views[place].guessed(self._bases[change.base])
        seconds = load + there.seconds * (_GUESS if guessed and left_behind else 1.0)
        rates = there.weight / seconds
        best = int(np.argmax(rates))
        rate, away = float(rates[best]), float(seconds[best])
        if here is None or not left_behind:
            return rate
        back = float(places.load[place]) if hosts == 1 else 0.0
        wait = here.weight * (away + back) + self._crowd * back
        return rate - float((wait / here.seconds).max()) / away

    def _there(self, change: _Change) -> _Beginnings:
        """What a place would do of another base model: jobs that fit nowhere else, or its share of those that are left
        when it has been loaded.
        """
        place, base, places = change.place, change.base, self._places
        backlog, hosts = self._backlogs[base], places.hosts(base)
        homeless = self._only_here(place, base)
        if homeless.any():
            return backlog.of(homeless)
        load = places.views[place].seconds_to_load(self._bases[base])
        working = int((hosts & places.ready).sum())
        return backlog.share(int(hosts.sum()) + 1, self._fitting(place, base), load * working)

    def _fitting(self, place: int, base: int) -> Mask:
        """Which jobs of a base model fit alone on a place."""
        return self._backlogs[base].fits(self._places.memory(place, self._bases[base]))

    def _only_here(self, place: int, base: int) -> Mask:
        """Which jobs of a base model fit on a place and on no other that hosts it."""
        places, ref, backlog = self._places, self._bases[base], self._backlogs[base]
        here, others = places.memory(place, ref), set()
        mask = backlog.fits(here)
        for other in np.flatnonzero(places.hosts(base)).tolist():
            memory = places.memory(other, ref)
            if other == place or memory in others:
                continue
            others.add(memory)
            mask &= ~backlog.fits(memory)
            if memory == here:
                break
        return mask

    def _needed(self, place: int) -> bool:
        """Whether other places host its base model, and a job of it fits on none of them but here."""
        base = int(self._places.base[place])
        if base < 0 or int(self._places.hosts(base).sum()) < 2:
            return False
        return bool(self._only_here(place, base).any())


def _possible_changes(places: Places, sources: Sequence[int], bases: Sequence[str]) -> list[_Change]:
    """Places and base models that they could change to; of places that are alike only the first."""
    counted: set[object] = set()
    changes = []
    for place in sorted(sources):
        view = places.views[place]
        alike = (int(places.base[place]), view.pinned, view.memory_limit, view.shape, view.load_seconds)
        kind = (alike, *sorted(view.loads.items()), *sorted(view.barred), *sorted(view.doubts.items()))
        if kind in counted:
            continue
        counted.add(kind)
        changes += [
            _Change(place, base)
            for base, ref in enumerate(bases)
            if base != places.base[place] and places.can_load(place, ref)
        ]
    return changes
