"""Which base model each place hosts: idle places follow the jobs that wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from orchestrator.scheduler.table import Jobs, Places


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
    for job in waiting:
        base = int(jobs.base[job])
        seen[base] += 1
        loading = int((places.hosts(base) & places.starting).sum())
        if loading < seen[base] and len(rehosts) < len(idle):
            start(job)
    return rehosts
