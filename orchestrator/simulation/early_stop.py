"""A simulation in which jobs stop early, by the very rules of the engine and of the grids."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpu_actor.contract.config import EarlyStopConfig
from gpu_actor.training.early_stop import Watch, diverged, overfitted
from orchestrator.scheduler.clock import ActorProgress, JobProgress
from orchestrator.scheduler.halving import Member, expected_steps, loss_at, rungs, stops
from orchestrator.simulation.loss_curves import Rows
from orchestrator.simulation.simulator import Outcome, Simulation
from orchestrator.simulation.trace import Profile, TraceJob


@dataclass(frozen=True)
class Stops:
    """What early stop did in a run.

    Attributes:
        outcome: The run; a job that stopped ends then.
        reasons: Job -> why it stopped.
        steps_saved: Share of all optimizer steps that was not made.
        grids: Grids of more than one job with losses.
        best_lost: Those of them whose best job, had all made all their steps, a rung stopped.
    """

    outcome: Outcome
    reasons: Mapping[str, str]
    steps_saved: float
    grids: int
    best_lost: int


def own_stop(rows: Rows, rules: EarlyStopConfig) -> tuple[int, str] | None:
    """At which step a job stops by its own losses, and why; None: it makes all its steps."""
    watch = Watch()
    for row in rows:
        step = int(row["step"])
        if "loss" in row:
            watch = watch.after_step(step, float(row["loss"]))
        if "eval_loss" in row:
            watch = watch.after_evaluation(step, float(row["eval_loss"]), rules.min_delta)
        reason = diverged(rules, watch, step, 0) or overfitted(rules, watch)
        if reason is not None:
            return step, reason
    return None


class StoppingSimulation(Simulation):
    """One trace under one policy and rules of early stop. The scheduler knows nothing of a stop before it comes."""

    def __init__(
        self,
        jobs: Sequence[TraceJob],
        devices: Sequence[Profile],
        policy: str,
        rules: EarlyStopConfig,
        curves: Mapping[str, Rows],
        **options: Any,
    ) -> None:
        """Nothing runs yet.

        Args:
            jobs: As `Simulation` has it.
            devices: Likewise.
            policy: Likewise.
            rules: The same for every job; the rungs are for jobs of a grid.
            curves: Losses by the name of a job; one without them never stops.
            options: The others of `Simulation`.
        """
        super().__init__(jobs, devices, policy, **options)
        self._rules, self._rows = rules, curves
        self._specs = {job.job: job for job in jobs}
        self._own = {name: found for name, rows in curves.items() if (found := own_stop(rows, rules)) is not None}
        self._grids: dict[str, list[str]] = defaultdict(list)
        for job in jobs:
            if job.grid is not None and job.job in curves:
                self._grids[job.grid].append(job.job)
        self._passed: dict[str, dict[int, float]] = defaultdict(dict)  # job -> rung -> loss there
        self._condemned: dict[str, str] = {}  # jobs that stop as soon as they train again
        self._reasons: dict[str, str] = {}
        self._unmade = 0.0
        for progress in self._jobs.values():
            progress.view = replace(progress.view, steps_left=self._believed_steps(progress))
            self._tell_next(progress)

    def run_and_count(self) -> Stops:
        """To the end of the last job."""
        outcome = self.run()
        grids = {name: members for name, members in self._grids.items() if len(members) > 1}
        lost = sum(self._lost_its_best(members) for members in grids.values())
        total = sum(job.steps for job in self._specs.values())
        return Stops(outcome, self._reasons, self._unmade / total if total else 0.0, len(grids), lost)

    def _lost_its_best(self, members: Sequence[str]) -> bool:
        ends = {name: loss_at(self._specs[name].steps, self._rows[name]) for name in members if name not in self._own}
        known = {name: loss for name, loss in ends.items() if loss is not None}
        return bool(known) and min(known, key=known.__getitem__) in self._reasons

    def _done(self, job: JobProgress) -> float:
        return self._specs[job.view.id].steps - job.steps_left

    def _tell_next(self, job: JobProgress) -> None:
        """Ask to hear of the job at its next rung, or where it stops by itself."""
        name, done = job.view.id, self._done(job) + 1e-6
        steps = self._specs[name].steps
        marks = [mark for mark in self._rungs(name) if mark > done]
        if name in self._own:
            marks.append(self._own[name][0])
        first = min(marks, default=steps)
        job.told_at = float(steps - first)

    def _believed_steps(self, job: JobProgress) -> int:
        """Less than all where rungs are ahead, as on a cluster."""
        steps, first = super()._believed_steps(job), self._rules.halving_steps
        if not first or not self._rungs(job.view.id):
            return steps
        done = self._done(job)
        return max(1, math.ceil(expected_steps(done, done + steps, first, self._rules.halving_keep)))

    def _rungs(self, name: str) -> list[int]:
        first, job = self._rules.halving_steps, self._specs[name]
        return rungs(first, job.steps) if first and job.grid is not None and name in self._rows else []

    def _on_reached(self, job: JobProgress) -> None:
        name, step = job.view.id, round(self._done(job))
        if name in self._condemned:
            self._stop(job, self._condemned[name])
        elif name in self._own and step >= self._own[name][0]:
            self._stop(job, self._own[name][1])
        else:
            loss = loss_at(step, self._rows[name])
            if loss is not None:
                self._passed[name][step] = loss
            self._tell_next(job)
            self._judge(self._specs[name].grid)

    def _on_attached(self, job: JobProgress, actor: ActorProgress) -> None:
        super()._on_attached(job, actor)
        if job.view.id in self._condemned:
            job.told_at = job.steps_left

    def _on_ended(self, job: JobProgress) -> None:
        super()._on_ended(job)
        self._judge(self._specs[job.view.id].grid)

    def _stop(self, job: JobProgress, reason: str) -> None:
        self._reasons[job.view.id] = reason
        self._unmade += job.steps_left
        self._end(job)

    def _is_alive(self, name: str) -> bool:
        return math.isinf(self._ends[self._traced[name].number])

    def _judge(self, grid: str | None) -> None:
        """Stop the jobs of a grid that its rungs do not let through."""
        if grid is None or not self._rules.halving_steps:
            return
        members = [
            Member(name, name, self._specs[name].steps, self._is_alive(name), self._passed[name])
            for name in self._grids[grid]
        ]
        for name, reason in stops(members, self._rules.halving_steps, self._rules.halving_keep).items():
            job = self._live.get(name)
            if job is None or name in self._condemned:
                continue
            self._condemned[name] = reason
            if job.view.actor is not None and job.ready_at <= self._now:
                self._stop(job, reason)
