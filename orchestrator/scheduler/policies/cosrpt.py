"""co-SRPT: shortest remaining work first, and jobs share a step where that saves more than it costs."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from orchestrator.scheduler.columns import Jobs, Places
from orchestrator.scheduler.policies.base import Policy
from orchestrator.scheduler.room import Floats, Ints, Mask

PATIENT = 5.0  # slowdown up to which a job is patient; beyond it its weight grows
AGE_POWER = 2.0
FUTURE = 2.0  # f: the overhead saved for jobs that are still to come counts twice that for those that are here
STAY = 2.0  # a step of a job counts v + 2 a in the order: it holds a place in a group while the others' steps are done


class CoSrpt(Policy):
    """The default.

    A group that runs together to its end costs, beside everybody's time alone, the sum over pairs of
    min(n_i, n_j) (w_i v_j + w_j v_i). So two jobs, k the shorter one, should share a step exactly when
    w_k v_j < w_j a. For many: lambda = a / g is the overhead that a step charges a job in a group of g, and a job
    shares a step where weight there * v <= lambda (1 + f) K, with K the weight behind it on an actor.

    A job that takes longer alone than all the work takes at the least decides when everything is done. With
    `makespan` its weight grows by that power of the ratio: such jobs begin sooner, at the expense of the mean.
    """

    name = "cosrpt"
    preempts = True
    rebalances = True
    turn: ClassVar[str] = "jobs with less work left for their weight go first on {base}"

    def __init__(self, jobs: Jobs, places: Places, makespan: float = 0.0) -> None:
        """Weigh the jobs by their age, and find the group sizes."""
        super().__init__(jobs, places, makespan)
        alone = np.maximum(jobs.total * (jobs.shared + jobs.added), 1e-9)
        slow = jobs.age / alone
        jobs.weight = jobs.weight * np.maximum(1.0, slow / PATIENT) ** AGE_POWER
        self._lam = np.zeros(jobs.count)
        self._keep = np.zeros(jobs.count)  # K
        self._actors: dict[int, int] = {}  # by base model
        self._lines: dict[int, tuple[Floats, Floats, float]] = {}  # likewise, for jobs that come later
        for base in np.unique(jobs.base):
            mine, actors = np.flatnonzero(jobs.base == base), max(1, int(places.hosts(int(base)).sum()))
            self._actors[int(base)] = actors
            self._urge(mine, actors)
            self._share(mine, actors)

    def _urge(self, mine: Ints, actors: int) -> None:
        """More weight for the jobs that decide when everything is done."""
        jobs = self.jobs
        alone = jobs.left[mine] * (jobs.shared[mine] + jobs.added[mine])
        least = float((jobs.left[mine] * jobs.added[mine]).sum()) / actors
        jobs.weight[mine] *= np.maximum(1.0, alone / max(least, 1e-9)) ** self.makespan

    def _share(self, mine: Ints, actors: int) -> None:
        """The group size g of one base model, and from it the overhead that a step charges a job."""
        jobs = self.jobs
        a = jobs.shared[mine]
        lam = a
        keep = np.zeros(len(mine))
        for _ in range(2):
            by = np.argsort(jobs.left[mine] * (jobs.added[mine] + lam) / jobs.weight[mine], kind="stable")
            weight = jobs.weight[mine][by]
            after = np.cumsum(weight[::-1])[::-1]
            ahead = (after[0] - after) / actors
            keep[by] = np.maximum(weight, after / actors)
            limit = (a * (1 + FUTURE) * keep)[by] / np.maximum(jobs.added[mine][by] * ahead, 1e-12)
            ranked = np.sort(limit)[::-1]
            group = np.minimum(ranked, np.arange(1, len(mine) + 1) / actors).max(initial=1.0)
            lam = a / max(1.0, group)
        self._lam[mine], self._keep[mine] = lam, keep

    def enter(self, jobs: Ints) -> None:
        """With the overhead that a step charges now, and the weight that was behind each at the full plan."""
        columns, more = self.jobs, np.zeros(len(jobs))
        self._lam, self._keep = np.append(self._lam, more), np.append(self._keep, more)
        for job, rank in zip(jobs.tolist(), self.rank(jobs).tolist(), strict=True):
            base = int(columns.base[job])
            if base not in self._lines:
                self._lines[base] = self._line(np.flatnonzero(columns.base[: jobs[0]] == base))
            ranks, behind, lam = self._lines[base]
            own = columns.weight[job]
            after = behind[np.searchsorted(ranks, rank)] + own
            self._lam[job], self._keep[job] = lam, max(own, after / self._actors[base])

    def _line(self, mine: Ints) -> tuple[Floats, Floats, float]:
        """The jobs of one base model in their order: ranks, the weight from each on to the end, and lambda."""
        ranks = self.rank(mine)
        by = np.argsort(ranks, kind="stable")
        behind = np.append(np.cumsum(self.jobs.weight[mine][by][::-1])[::-1], 0.0)
        return ranks[by], behind, float(self._lam[mine[0]])

    def rank(self, jobs: Ints) -> Floats:
        """By what is left, over the weight. In a group all steps take equally long, so that few of them count most."""
        columns = self.jobs
        each = columns.added[jobs] + STAY * columns.shared[jobs]
        rank: Floats = columns.left[jobs] * each / columns.weight[jobs]
        return rank

    def cost(self, job: int) -> Floats:
        """What the job and its neighbours lose."""
        places = self.places
        wanted = places.weight_on * self.jobs.added[job] <= self._most(job)
        return np.where((places.jobs_on == 0) | wanted, places.sharing_cost(job), np.inf)

    def takes(self, job: int, place: int) -> bool:
        """An empty one, or one where what the job costs the others is less than the overhead it saves."""
        places = self.places
        return not places.jobs_on[place] or bool(places.weight_on[place] * self.jobs.added[job] <= self._most(job))

    def _most(self, jobs: int | Ints) -> Floats:
        most: Floats = self._lam[jobs] * (1 + FUTURE) * self._keep[jobs]
        return most

    def hopeful(self, jobs: Ints, hosts: Mask) -> Mask:
        """Those that the place with the least weight would take."""
        places = self.places
        if (places.jobs_on[hosts] == 0).any():
            return np.ones(len(jobs), bool)
        least = float(places.weight_on[hosts].min(initial=np.inf))
        mask: Mask = least * self.jobs.added[jobs] <= self._most(jobs)
        return mask
