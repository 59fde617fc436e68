"""Which base model each place hosts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from orchestrator.scheduler.table import Ints, Jobs, Mask, Places
from orchestrator.scheduler.view import ActorState

_CLEARLY = 1.5  # times its loss by which a change of base models must gain


def change_bases(
    places: Places, jobs: Jobs, bases: Sequence[str], queued: Sequence[int], *, more: bool
) -> dict[int, str]:
    """Give idle places to base models that queued jobs wait for; returns place -> base model.

    Args:
        places: With everything planned that could be.
        jobs: All jobs.
        bases: Names of the base models.
        queued: Jobs that are attached nowhere, the best first.
        more: Whether base models that somebody hosts get further places.
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
        found = [
            place
            for place in idle
            if place not in rehosts
            and places.base[place] != base
            and places.may_host(place, view.base_model)
            and places.fits_alone(place, view)
        ]
        if found:
            rehost(min(found, key=lambda p: (places.views[p].pinned is None, places.base[p] >= 0, p)), base)

    for job in waiting:
        if not places.hosts(int(jobs.base[job])).any():
            start(job)
    seen: Counter[int] = Counter()
    for job in waiting if more else ():
        base = int(jobs.base[job])
        seen[base] += 1
        loading = int((places.hosts(base) & places.starting).sum())
        if loading < seen[base] and len(rehosts) < len(idle):
            start(job)
    return rehosts


def rebalance(places: Places, jobs: Jobs, bases: Sequence[str]) -> dict[int, str]:
    """Change the base model of places where that saves clearly more than it costs; returns place -> base model.

    With F_b(M) the weighted seconds that the jobs of base model b wait for each other on M places, one place more for
    b gains F_b(M_b) - F_b(M_b + 1); one less for c loses F_c(M_c - 1) - F_c(M_c). A place changes from c to b if the
    gain exceeds 1.5 times the loss and the loading, which is charged to the jobs that wait for it. If jobs are
    attached there it is only closed, so that the plan empties it; a later plan changes it.
    """
    if len(bases) < 2 and bool((places.base >= 0).all()):
        return {}
    backlogs = [_Backlog(jobs, np.flatnonzero((jobs.base == number) & ~jobs.lost)) for number in range(len(bases))]
    hosts = [int(places.hosts(number).sum()) for number in range(len(bases))]
    rehosts: dict[int, str] = {}
    sources = [place for place in range(places.count) if _may_change(places, jobs, place)]
    while sources:
        best = max(
            (
                (place, base, _worth(places, backlogs, hosts, place, base, bases[base]))
                for place, base in _pairs(places, sources, bases)
            ),
            key=lambda one: (one[2], -len(places.attached[one[0]]), -one[0]),
            default=(-1, -1, 0.0),
        )
        place, base, worth = best
        if worth <= 0:
            break
        sources.remove(place)
        if _needed(places, backlogs, bases, place):
            continue
        if places.base[place] >= 0:
            hosts[places.base[place]] -= 1
        hosts[base] += 1
        if places.attached[place]:
            places.closed[place] = True
        else:
            rehosts[place] = bases[base]
            places.host(place, bases[base])
    for place in np.flatnonzero(places.closed).tolist():
        # the base model that it was closed for may have got another host since, too small for some of the jobs
        places.closed[place] = not _needed(places, backlogs, bases, place)
    return rehosts


class _Backlog:
    """The jobs of one base model, shortest first."""

    def __init__(self, jobs: Jobs, mine: Ints) -> None:
        seconds = jobs.left[mine] * (jobs.shared[mine] + jobs.added[mine])
        by = np.argsort(seconds / jobs.weight[mine], kind="stable")
        self._seconds, self._weight = seconds[by], jobs.weight[mine][by]
        self.weight = float(self._weight.sum())
        self._age = float(np.dot(jobs.age[mine][by], self._weight))
        self._known: dict[int, float] = {}
        self._bytes, self._worst = jobs.bytes[mine], jobs.worst[mine]

    def fits(self, limit: float, fixed: float, per_token: float, cap: float) -> Mask:
        """Which of the jobs fit alone on a place."""
        mask: Mask = fixed + self._bytes + per_token * np.maximum(cap, self._worst) <= limit
        return mask

    def waits(self, places: int, load: float) -> float:
        """F: weighted seconds that the jobs wait for each other, if they go round the places shortest first.

        Args:
            places: How many; without any they wait for a load there and back, and as long again as they are old, so
                that no base model waits for ever for one whose jobs come and go.
            load: Seconds.
        """
        if not places:
            return self.waits(1, load) + 2 * load * self.weight + max(0.0, self._age)
        if places not in self._known:
            count = len(self._seconds)
            rows = -(-count // places)
            table = np.zeros(rows * places)
            table[:count] = self._seconds
            starts = np.cumsum(table.reshape(rows, places), axis=0).ravel()[:count] - self._seconds
            self._known[places] = float(np.dot(starts, self._weight))
        return self._known[places]


def _may_change(places: Places, jobs: Jobs, place: int) -> bool:
    """Empty, or ready with jobs that may all be taken off."""
    if places.views[place].pinned is not None and places.base[place] >= 0:
        return False
    calm = places.states[place] in (ActorState.EMPTY, ActorState.READY)
    return calm and all(jobs.movable[job] for job in places.attached[place])


def _needed(places: Places, backlogs: Sequence[_Backlog], bases: Sequence[str], place: int) -> bool:
    """Whether a job fits on this place and on no other host of its base model."""
    base = int(places.base[place])
    if base < 0:
        return False
    mine = places.kind(place, bases[base])
    others = {
        places.kind(other, bases[base]) for other in np.flatnonzero(places.hosts(base)).tolist() if other != place
    }
    if not others or mine in others:
        return False
    elsewhere = np.any([backlogs[base].fits(*kind) for kind in others], axis=0)
    return bool((backlogs[base].fits(*mine) & ~elsewhere).any())


def _pairs(places: Places, sources: Sequence[int], bases: Sequence[str]) -> list[tuple[int, int]]:
    """Places and base models that they could change to; of places that are alike only the first."""
    seen: set[object] = set()
    pairs = []
    for place in sorted(sources, key=lambda p: (len(places.attached[p]), p)):
        view = places.views[place]
        kind = (int(places.base[place]), view.pinned, view.memory_limit, view.shape, view.load_seconds)
        if kind in seen:
            continue
        seen.add(kind)
        pairs += [(place, n) for n, ref in enumerate(bases) if n != places.base[place] and places.may_host(place, ref)]
    return pairs


def _worth(
    places: Places, backlogs: Sequence[_Backlog], hosts: Sequence[int], place: int, base: int, ref: str
) -> float:
    """Weighted seconds that a change gains, beyond what it must."""
    load, old = float(places.load[place]), int(places.base[place])
    if not backlogs[base].fits(*places.kind(place, ref)).any():
        return 0.0
    gain = backlogs[base].waits(hosts[base], load) - backlogs[base].waits(hosts[base] + 1, load)
    loss = 0.0
    if old >= 0 and backlogs[old].weight:
        loss = backlogs[old].waits(hosts[old] - 1, load) - backlogs[old].waits(hosts[old], load)
    return gain - _CLEARLY * loss - load * backlogs[base].weight / (hosts[base] + 1)
