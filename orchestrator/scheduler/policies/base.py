"""What a policy has to say. Memory, base models, patience and words are everybody's and are not its business."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from orchestrator.scheduler.job_columns import Jobs
from orchestrator.scheduler.place_columns import Places
from orchestrator.scheduler.room import Floats, Ints, Mask


class Policy:
    """One way to decide. An object lives for one plan.

    Attributes:
        name: As the cluster file and the command line call it.
        preempts: Whether it may take running jobs off their actors.
        rebalances: Whether a place changes its base model as soon as that is worth the loading (`hosting.rebalance`),
            and not only when it is idle and somebody waits.
        turn: Why a job waits that no actor takes although there is memory; `{base}` is its base model.
    """

    name: ClassVar[str]
    preempts: ClassVar[bool] = False
    rebalances: ClassVar[bool] = False
    turn: ClassVar[str] = "every actor that hosts {base} has its share of jobs"

    def __init__(self, jobs: Jobs, places: Places, makespan: float = 0.0) -> None:
        """Weigh the jobs; which place hosts which base model is still open.

        Args:
            jobs: All jobs; a policy may raise `jobs.weight`.
            places: All places, without anything planned yet.
            makespan: `ClusterView.makespan`.
        """
        self.jobs, self.places, self.makespan = jobs, places, makespan

    def begin(self) -> None:
        """Look at the places once: from here on it is decided which of them hosts what."""

    def enter(self, jobs: Ints) -> None:
        """Take in jobs whose rows were added since; by what was known then, until the next full plan."""

    def rank(self, jobs: Ints) -> Floats:
        """The place of some jobs in the order: the least comes first, of equals the one that arrived first."""
        raise NotImplementedError

    def order(self) -> Ints:
        """All job numbers, the best first. It decides who is placed first and who comes first in an actor's batches."""
        return np.argsort(self.rank(np.arange(self.jobs.count)), kind="stable")

    def cost(self, job: int) -> Floats:
        """What a job would cost on each place beside those that are planned there; infinite where it is not wanted."""
        raise NotImplementedError

    def takes(self, job: int, place: int) -> bool:
        """Whether a job is wanted on one place: whether its cost there is finite."""
        raise NotImplementedError

    def hopeful(self, jobs: Ints, hosts: Mask) -> Mask:  # noqa: ARG002
        """Which of some jobs of one base model may still be wanted on any of its hosts. May err on the side of hope."""
        return np.ones(len(jobs), bool)
