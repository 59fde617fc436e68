"""co-SRPT: shortest remaining work first, and jobs share a step where that saves more than it costs."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np

from orchestrator.scheduler.job_columns import Jobs
from orchestrator.scheduler.place_columns import Places
from orchestrator.scheduler.policies.base import Policy
from orchestrator.scheduler.room import Floats, Ints, Mask

PATIENT = 5.0  # slowdown up to which a job is patient; beyond it its weight grows
AGE_POWER = 2.0
FUTURE = 2.0  # f: the overhead saved for jobs that are still to come counts twice that for those that are here
DOUBT = 2.0  # times the doubt about the speed of a place by which a job must cost its neighbours more before it leaves
_HOPE = 1 + 1e-9  # what is rounded off must not cost a job its place
STAY = 2.0  # a step of a job counts v + 2 a in the order: it holds a place in a group while the others' steps are done


class _Queue(NamedTuple):
    """The jobs of one base model in their order.

    Attributes:
        weight_behind: From each job on to the end; a last 0 for whoever comes behind them all.
        overhead: lambda, that a step charges each of them.
    """

    ranks: Floats
    weight_behind: Floats
    overhead: float


class CoSrpt(Policy):
    """The default.

    A group that runs together to its end costs, beside everybody's time alone, the sum over pairs of
    min(n_i, n_j) (w_i v_j + w_j v_i). So two jobs, k the shorter one, should share a step exactly when
    w_k v_j < w_j a. For many: lambda = a / g is the overhead that a step charges a job in a group of g, and a job
    shares a step where weight there * v <= lambda (1 + f) K, with K the weight behind it on an actor.

    Where base models take turns, a place is left for another one when what is short against a loading is done
    (`hosting.rebalance`): who waits for a base model that no place has waits for such a job, and counts as behind it.

    A job that takes longer alone than all the work takes at the least decides when everything is done. With
    `makespan` its weight grows by that power of the ratio: such jobs begin sooner, at the expense of the mean.
    """

    name = "cosrpt"
    preempts = True
    rebalances = True
    turn: ClassVar[str] = "jobs with less work left for their weight go first on {base}"

    def __init__(self, jobs: Jobs, places: Places, makespan: float = 0.0) -> None:
        """Weigh the jobs by their age; where base models take turns, nobody is done before his is loaded."""
        super().__init__(jobs, places, makespan)
        alone = np.maximum(jobs.total * (jobs.shared + jobs.added), 1e-9)
        self._loading = self._seconds_to_load()
        alone += self._loading[jobs.base]
        jobs.weight = jobs.weight * np.maximum(1.0, jobs.age / alone / PATIENT) ** AGE_POWER
        self._overhead = np.zeros(jobs.count)  # lambda
        self._weight_behind = np.zeros(jobs.count)  # K
        self._actors: dict[int, float] = {}  # by base model
        self._queues: dict[int, _Queue] = {}  # likewise, for jobs that come later
        self._clearly = self._times_to_leave()
        self._hope = np.zeros(jobs.count)
        self._elsewhere = 0.0  # weight of the jobs whose base model no place has, for each place

    def _times_to_leave(self) -> Floats:
        """Times what a job may cost its neighbours that make it leave; more where speed is in doubt."""
        jobs, places = self.jobs, self.places.views
        times = np.ones(jobs.count)
        for job in np.flatnonzero(jobs.at >= 0).tolist() if any(place.doubts for place in places) else ():
            times[job] += DOUBT * places[jobs.at[job]].doubts.get(jobs.views[job].base_model, 0.0)
        return times

    def _seconds_to_load(self) -> Floats:
        """Of each base model, on the average place; 0 where there is only one."""
        jobs, numbers = self.jobs, np.unique(self.jobs.base).tolist()
        loading = np.zeros(max(numbers, default=-1) + 1)
        for base in numbers if self.places.count and len(numbers) > 1 else ():
            ref = jobs.views[int(np.argmax(jobs.base == base))].base_model
            loading[base] = np.mean([place.seconds_to_load(ref) for place in self.places.views])
        return loading

    def begin(self) -> None:
        """Find the group sizes."""
        hosted = np.array([bool(self.places.hosts(base).any()) for base in range(len(self._loading))], bool)
        homeless = ~hosted[self.jobs.base] & ~self.jobs.lost
        self._elsewhere = float(self.jobs.weight[homeless].sum()) / max(1, self.places.count)
        for base in np.unique(self.jobs.base):
            members = np.flatnonzero(self.jobs.base == base)
            actors = max(1.0, self.places.worth(int(base)))
            self._actors[int(base)] = actors
            self._weigh_long_jobs(members, actors)
            self._size_groups(members, actors)
        self._hope = self._hopes()

    def _weigh_long_jobs(self, members: Ints, actors: float) -> None:
        """More weight for the jobs that decide when everything is done."""
        jobs = self.jobs
        alone = jobs.left[members] * (jobs.shared[members] + jobs.added[members])
        least = float((jobs.left[members] * jobs.added[members]).sum()) / actors
        jobs.weight[members] *= np.maximum(1.0, alone / max(least, 1e-9)) ** self.makespan

    def _size_groups(self, members: Ints, actors: float) -> None:
        """The group size g of one base model, and from it the overhead that a step charges a job."""
        jobs = self.jobs
        a = jobs.shared[members]
        overhead = a
        behind_each = np.zeros(len(members))
        for _ in range(2):
            by = np.argsort(jobs.left[members] * (jobs.added[members] + overhead) / jobs.weight[members], kind="stable")
            weight = jobs.weight[members][by]
            after = np.cumsum(weight[::-1])[::-1]
            ahead = (after[0] - after) / actors
            behind_each[by] = np.maximum(weight, after / actors) + self._waits_elsewhere(members[by])
            limit = (a * (1 + FUTURE) * behind_each)[by] / np.maximum(jobs.added[members][by] * ahead, 1e-12)
            ranked = np.sort(limit)[::-1]
            group = np.minimum(ranked, np.arange(1, len(members) + 1) / actors).max(initial=1.0)
            overhead = a / max(1.0, group)
        self._overhead[members], self._weight_behind[members] = overhead, behind_each

    def _waits_elsewhere(self, jobs: Ints) -> Floats:
        """Weight of those who wait until each of some jobs is done and its place is left for their base model."""
        columns = self.jobs
        alone = columns.left[jobs] * (columns.shared[jobs] + columns.added[jobs])
        return np.where(alone <= self._loading[columns.base[jobs]], self._elsewhere, 0.0)

    def enter(self, jobs: Ints) -> None:
        """With the overhead that a step charges now, and the weight that was behind each at the full plan."""
        columns, more = self.jobs, np.zeros(len(jobs))
        self._overhead, self._weight_behind = np.append(self._overhead, more), np.append(self._weight_behind, more)
        for job, rank in zip(jobs.tolist(), self.rank(jobs).tolist(), strict=True):
            base = int(columns.base[job])
            if base not in self._queues:
                self._queues[base] = self._queue_of(np.flatnonzero(columns.base[: jobs[0]] == base))
            queue, weight = self._queues[base], columns.weight[job]
            behind = queue.weight_behind[np.searchsorted(queue.ranks, rank)] + weight
            self._overhead[job], self._weight_behind[job] = queue.overhead, max(weight, behind / self._actors[base])
        self._weight_behind[jobs] += self._waits_elsewhere(jobs)
        self._clearly = np.append(self._clearly, more + 1)
        self._hope = self._hopes()

    def _queue_of(self, members: Ints) -> _Queue:
        """The queue of the jobs of one base model."""
        ranks = self.rank(members)
        by = np.argsort(ranks, kind="stable")
        behind = np.append(np.cumsum(self.jobs.weight[members][by][::-1])[::-1], 0.0)
        return _Queue(ranks[by], behind, float(self._overhead[members[0]]))

    def rank(self, jobs: Ints) -> Floats:
        """By what is left, over the weight. In a group all steps take equally long, so that few of them count most."""
        columns = self.jobs
        each = columns.added[jobs] + STAY * columns.shared[jobs]
        rank: Floats = columns.left[jobs] * each / columns.weight[jobs]
        return rank

    def cost(self, job: int) -> Floats:
        """What the job and its neighbours lose."""
        places, here = self.places, int(self.jobs.at[job])
        seconds = places.weight_on * places.added(job)
        most = places.overhead(job) * self._most_added(job)
        if here >= 0:
            most[here] *= self._clearly[job]
        wanted = seconds <= most
        return np.where((places.jobs_on == 0) | wanted, places.sharing_cost(job), np.inf)

    def takes(self, job: int, place: int) -> bool:
        """An empty one, or one where what the job costs the others is less than the overhead it saves."""
        places = self.places
        if not places.jobs_on[place]:
            return True
        seconds = places.weight_on[place] * places.added_at(place, job)
        most = places.overhead_at(place, job) * self._most_added(job)
        return bool(seconds <= (self._clearly[job] * most if self.jobs.at[job] == place else most))

    def _most_added(self, jobs: int | Ints) -> Floats:
        """Most weighted seconds that jobs may add to the steps of others, on the average place."""
        limit: Floats = self._overhead[jobs] * (1 + FUTURE) * self._weight_behind[jobs]
        return limit

    def hopeful(self, jobs: Ints, hosts: Mask) -> Mask:
        """Those that a place as good as the best of the hosts in everything would take."""
        places = self.places
        if (places.jobs_on[hosts] == 0).any():
            return np.ones(len(jobs), bool)
        least = places.least_weight_added(hosts, jobs)
        mask: Mask = least <= self._hope[jobs]
        return mask

    def _hopes(self) -> Floats:
        """Most weight times v, over the fixed cost of a step, with which each job may still be wanted."""
        jobs = np.arange(self.jobs.count)
        hopes: Floats = self._clearly * self._most_added(jobs) / np.maximum(self.jobs.shared, 1e-12) * _HOPE
        return hopes
