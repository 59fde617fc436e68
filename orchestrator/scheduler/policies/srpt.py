"""Shortest remaining time first, one job per actor."""

from __future__ import annotations

import numpy as np

from orchestrator.scheduler.policies.base import Policy
from orchestrator.scheduler.room import Floats, Ints, Mask


class Srpt(Policy):
    """The job with the least time left for its weight runs; a shorter one takes its place."""

    name = "srpt"
    preempts = True
    rebalances = True
    turn = "jobs with less time left for their weight go first on {base}"

    def rank(self, jobs: Ints) -> Floats:
        """By the time that is left alone, over the weight."""
        columns = self.jobs
        rank: Floats = columns.left[jobs] * (columns.shared[jobs] + columns.added[jobs]) / columns.weight[jobs]
        return rank

    def cost(self, job: int) -> Floats:
        """The fastest empty place."""
        return np.where(self.places.jobs_on == 0, self.places.sharing_cost(job), np.inf)

    def takes(self, job: int, place: int) -> bool:  # noqa: ARG002
        """An empty one."""
        return not self.places.jobs_on[place]

    def hopeful(self, jobs: Ints, hosts: Mask) -> Mask:
        """None as soon as no place is empty."""
        return np.full(len(jobs), bool((self.places.jobs_on[hosts] == 0).any()))
