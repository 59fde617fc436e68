"""Between two full plans: an end gives its place to the head of the queue, an arrival takes the cheapest place.

An `IncrementalPlan` is a full plan that has been carried out as far as it goes at once, with its columns, its order
and its policy. It answers arrivals and ends by the rules of the full plan (`Planner._place`, the policy's `cost`,
`takes` and `hopeful`), in a few vector operations. Everything else it leaves to the next full plan: who is taken off,
moved, kept a place for, tried alone or refused, base models, and the reasons of those who wait. A place on which any
of that is under way is shut: nothing starts there, and what ends there asks for a full plan.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from orchestrator.scheduler.planner import PATIENCE_S, Planner
from orchestrator.scheduler.policies import DEFAULT, POLICIES
from orchestrator.scheduler.room import Ints
from orchestrator.scheduler.view import ActorState, ClusterView, JobView, Plan

_HEAD = 256  # of the queue that are looked at first


class IncrementalPlan(Planner):
    """A full plan, and what has come of it since.

    Attributes:
        full: The plan that it started from.
    """

    def __init__(self, view: ClusterView, policy: str = DEFAULT, *, explain: bool = True) -> None:
        """Make the full plan, which is `decide` of the same arguments; what follows takes it as carried out."""
        super().__init__(view, POLICIES[policy])
        self.full = self.plan(explain=explain)
        self._planned_at = view.now  # the age of every job is that at the full plan, or the order would not hold
        self._number = {job.id: number for number, job in enumerate(self._jobs.views)}
        self._planned_bases = {self._bases[base] for base in np.unique(self._jobs.base)}
        self._place_number = {place.id: number for number, place in enumerate(self._places.views)}
        starts = {self._number[job] for job in (*self.full.placements, *self.full.after)}
        for job in np.flatnonzero(self._asked & (self._target != self._jobs.at) & (self._target >= 0)).tolist():
            if job not in starts:  # it counts on a place that is still loading, and takes one that is free sooner
                self._target[job] = -1
        self._queued = self._asked & (self._jobs.at < 0) & (self._target < 0) & ~self._jobs.leaving & ~self._jobs.alone
        self._rank = self._policy.rank(np.arange(self._jobs.count))
        queue = self._order[self._queued[self._order]]  # of each base model, the best first; some are gone since
        self._queue = {base: queue[self._jobs.base[queue] == base] for base in range(len(self._bases))}
        self._shut()

    def _shut(self) -> None:
        """Shut the places where anybody leaves, is alone or still to come, or that are kept: from here on nobody's."""
        jobs, places, full = self._jobs, self._places, self.full
        shut = ~places.ready | places.closed | (places.kept_for >= 0) | places.solo
        shut |= np.array([bool(there) for there in places.leaving], bool)
        shut[[self._place_number[place] for place in full.after.values()]] = True
        shut[[int(jobs.at[self._number[job]]) for job in (*full.preemptions, *full.moves)]] = True
        shut |= np.array([state is not ActorState.READY for state in places.states], bool)
        places.base[shut] = -1

    def place_of(self, job_id: str) -> str | None:
        """Where a job is or starts, by the full plan and the answers since; None: in the queue, or unknown."""
        number = self._number.get(job_id)
        place = -1 if number is None else int(self._target[number])
        return None if place < 0 else self._places.views[place].id

    def answer(self, arrived: Sequence[JobView], gone: Collection[str], now: float) -> Plan | None:
        """Who starts after some arrivals and ends; None: this takes a full plan, and so does all that comes after.

        Args:
            arrived: Jobs that have joined the queue, by submission or from a pause.
            gone: Jobs that have ended, or have left the queue.
            now: The time, on the clock of the view.
        """
        if any(job.base_model not in self._planned_bases or now - job.queued_at >= PATIENCE_S for job in arrived):
            return None
        if any(job.alone for job in arrived):
            return None
        freed = self._free(gone)
        if freed is None:
            return None
        placed = self._fill(freed)
        for job in self._enter(arrived) if arrived else ():
            self._place(job)
            if self._target[job] >= 0:
                placed.append(job)
            else:
                self._wait(job)
        return self._partial(placed, freed)

    # -- ends ----------------------------------------------------------------------------------------------------

    def _free(self, gone: Collection[str]) -> list[int] | None:
        """Take out jobs that are gone; returns the places where they were."""
        freed = set()
        for job_id in gone:
            number = self._number.get(job_id)
            if number is None:
                continue  # it was refused, or can run nowhere: it is in no column
            if self._queued[number]:
                self._queued[number] = False
                continue
            place = int(self._target[number])
            if place < 0 or self._places.base[place] < 0:
                return None
            self._places.remove(place, number)
            self._target[number] = -1
            freed.add(place)
        return sorted(freed)

    def _fill(self, freed: Sequence[int]) -> list[int]:
        """Let the best of the queue start where somebody has left; returns them."""
        placed: list[int] = []
        for place in freed:
            queue = self._queue[int(self._places.base[place])]
            at = 0
            while (match := self._first_to_start(queue, at, place)) is not None:
                at, job = match
                self._put(job, place)
                self._queued[job] = False
                placed.append(job)
        return placed

    def _first_to_start(self, queue: Ints, at: int, place: int) -> tuple[int, int] | None:
        """The first job of a queue from some position on that starts on a place, and the position after it."""
        places = self._places
        here = np.zeros(places.count, bool)
        here[place] = True
        size = _HEAD
        while at < len(queue):
            some = queue[at : at + size]
            may = self._queued[some] & places.may_fit(here, some)
            for index in np.flatnonzero(may & self._policy.hopeful(some, here)).tolist():
                job = int(some[index])
                if self._policy.takes(job, place) and places.fits_at(place, job):
                    return at + index + 1, job
            at, size = at + size, 8 * size
        return None

    # -- arrivals ------------------------------------------------------------------------------------------------

    def _enter(self, arrived: Sequence[JobView]) -> list[int]:
        """Rows for new jobs; returns their numbers, the best first. One that comes back gets a new number."""
        before, count = self._jobs.count, len(arrived)
        self._jobs.append(arrived, self._bases, self._planned_at)
        numbers = np.arange(before, before + count)
        self._number |= {job.id: int(number) for job, number in zip(arrived, numbers, strict=True)}
        self._target = np.append(self._target, np.full(count, -1, np.int64))
        self._asked = np.append(self._asked, np.ones(count, bool))
        self._queued = np.append(self._queued, np.zeros(count, bool))
        self._policy.enter(numbers)
        self._rank = np.append(self._rank, self._policy.rank(numbers))
        ranked: list[int] = numbers[np.argsort(self._rank[numbers], kind="stable")].tolist()
        return ranked

    def _wait(self, job: int) -> None:
        """A new job joins the queue, where it comes by its rank."""
        base = int(self._jobs.base[job])
        queue = self._queue[base]
        at = int(np.searchsorted(self._rank[queue], self._rank[job], side="right"))
        self._queue[base] = np.insert(queue, at, job)
        self._queued[job] = True

    # -- the answer ----------------------------------------------------------------------------------------------

    def _partial(self, placed: Sequence[int], freed: Sequence[int]) -> Plan:
        views, places = self._jobs.views, self._places
        touched = {*freed, *(int(self._target[job]) for job in placed)}
        order = {}
        for place in sorted(touched):
            there = np.array(sorted(places.planned[place]), np.int64)
            if len(there):
                ranked = there[np.argsort(self._rank[there], kind="stable")]
                order[places.views[place].id] = tuple(views[job].id for job in ranked.tolist())
        starts = {views[job].id: places.views[int(self._target[job])].id for job in placed}
        return Plan(placements=starts, order=order)
