"""Carries out what the policy has planned: first in the store, then by orders to the actors."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from gpu_actor.contract.orders import Attach, Detach, SetBatchOrder
from orchestrator.cluster.fleet import Fleet
from orchestrator.cluster.member import Instruction
from orchestrator.control.job_ends import JobEnds
from orchestrator.jobs.output_folder import write_job_file
from orchestrator.jobs.states import JobState
from orchestrator.knowledge.swap_times import Swaps
from orchestrator.scheduler.view import Plan
from orchestrator.store.records import JobRecord, Wish

if TYPE_CHECKING:
    from orchestrator.store.store import Store

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class PlanExecution:
    """Carries out the plans of one orchestrator."""

    def __init__(
        self, store: Store, fleet: Fleet, ends: JobEnds, swaps: Swaps, on_start: Callable[[JobRecord], None]
    ) -> None:
        """Nothing happens yet.

        Args:
            store: The job table.
            fleet: The actors.
            ends: Takes the jobs that cannot run.
            swaps: Times how long jobs take to leave and to start.
            on_start: Called with each job that was given to an actor.
        """
        self._store, self._fleet, self._ends, self._swaps = store, fleet, ends, swaps
        self._on_start = on_start

    def record(self, plan: Plan) -> list[Instruction]:
        """Record a plan and start the actors that it wants; returns the orders that carry out the rest."""
        queued: dict[str, JobRecord] = {}
        if plan.placements or plan.waiting or plan.rejections:
            queued = {job.id: job for job in self._store.jobs([JobState.QUEUED])}
        self._record_waiting(queued, plan.waiting)
        for job_id, reason in plan.rejections.items():
            self._ends.fail(queued[job_id], reason, verb="rejected")
        instructions: list[Instruction] = []
        for job_id, place_id in plan.placements.items():
            instructions += self._assign(queued[job_id], place_id)
        instructions += self._take_off(plan)
        for place_id, base_model in plan.rehosts.items():
            self._fleet.start(place_id, base_model)
        return instructions + self._batch_orders(plan.order)

    def _record_waiting(self, queued: Mapping[str, JobRecord], waiting: Mapping[str, str]) -> None:
        changed = {job_id: reason for job_id, reason in waiting.items() if queued[job_id].waiting_for != reason}
        if changed:
            self._store.set_waiting(changed)

    def _assign(self, job: JobRecord, place_id: str) -> list[Instruction]:
        """Give a queued job to the actor in a place."""
        member = self._fleet.at(place_id)
        if member is None or member.report is None:
            return []
        try:
            write_job_file(job.spec)
        except OSError as error:
            why = f"output_dir: {job.output_dir} cannot be written: {error.strerror}"
            if error.errno in _NO_ROOM:  # it is placed anew with the next plan
                self._store.set_waiting({job.id: f"room to write: {why}"})
            else:
                self._ends.fail(job, f"{why}; mend its permissions, or choose another folder")
            return []
        assigned = self._store.assign(job.id, member.name, member.report.boot_id)
        if assigned is None:
            return []
        self._swaps.given(assigned)
        self._on_start(assigned)
        return [Instruction(member.name, Attach(job.spec.to_adapter_spec(job.id), assigned.attempt))]

    def _take_off(self, plan: Plan) -> list[Instruction]:
        """Pre-empted jobs, and those that go on elsewhere, leave their actors with a checkpoint and join the queue."""
        names = {view.id: view.name for view in self._fleet.views()}
        moves = {job_id: f"it goes on at {names[place_id]}" for job_id, place_id in plan.moves.items()}
        reasons = {**plan.preemptions, **moves}
        running = {job.id: job for job in self._store.jobs([JobState.RUNNING])} if reasons else {}
        instructions = []
        for job_id, reason in reasons.items():
            job = running.get(job_id)
            if job is not None and job.actor is not None and job.wish is None:
                self._store.wish(job_id, Wish.YIELD, f"is taken off {job.actor}: {reason}")
                self._swaps.asked(job)
                instructions.append(Instruction(job.actor, Detach(job_id, True, job.attempt)))
        return instructions

    def _batch_orders(self, order: Mapping[str, tuple[str, ...]]) -> list[Instruction]:
        """The orders in which jobs come into shared batches, where an actor has another one."""
        members = self._fleet.by_place()
        instructions = []
        for place_id, job_ids in order.items():
            member = members.get(place_id)
            if member is not None and member.sent_order != job_ids:
                member.sent_order = job_ids
                instructions.append(Instruction(member.name, SetBatchOrder(job_ids)))
        return instructions
