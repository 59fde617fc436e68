"""First come, first served: nobody is taken off. A priority is a start ahead of those who came earlier."""

from __future__ import annotations

import numpy as np

from orchestrator.scheduler.policies.base import Policy
from orchestrator.scheduler.room import Floats, Ints, Mask

AGING_S = 600.0  # by which a job goes ahead of earlier ones for each class above them


class FifoMemory(Policy):
    """As many jobs on each actor as memory allows: the scheduler of the m-LoRA paper (arXiv 2312.02515v1)."""

    name = "fifo-memory"
    most: float = np.inf

    def rank(self, jobs: Ints) -> Floats:
        """By arrival, as if every class had come so much earlier: no stream of urgent jobs holds one up for ever.

        The order of two jobs never changes while they wait.
        """
        rank: Floats = -self.jobs.priority[jobs] * AGING_S - self.jobs.age[jobs]
        return rank

    def cost(self, job: int) -> Floats:  # noqa: ARG002
        """The fewest jobs, then the most memory; an actor that is ready before one that is still loading."""
        places = self.places
        free = np.minimum(places.room.free(), 2.0**60)
        tie = 0.25 * places.starting - 0.125 * free / max(float(np.abs(free).max(initial=1.0)), 1.0)
        return np.where(places.jobs_on < self.most, places.jobs_on + tie, np.inf)

    def takes(self, job: int, place: int) -> bool:  # noqa: ARG002
        """Up to its number."""
        return bool(self.places.jobs_on[place] < self.most)

    def hopeful(self, jobs: Ints, hosts: Mask) -> Mask:
        """None as soon as every place has its number."""
        return np.full(len(jobs), bool((self.places.jobs_on[hosts] < self.most).any()))


class Fifo(FifoMemory):
    """One job per actor: what a queue of scripts does."""

    name = "fifo"
    most = 1


class FifoFour(FifoMemory):
    """Four jobs per actor, however large they are: m-LoRA as released."""

    name = "fifo-4"
    most = 4
