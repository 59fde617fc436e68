"""One look at the cluster: observe -> decide -> record -> act.

Whatever is decided is in the store before an actor hears of it, and every call to an actor may be repeated. So this
can be cut off at any point: the next look, perhaps by another process, goes on from the store and the reports.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gpu_actor.contract.report import TenantReport, TenantState
from orchestrator.cluster.fleet import Fleet
from orchestrator.cluster.member import Loss, LossKind, Member
from orchestrator.control.grid_stops import GridStops
from orchestrator.control.job_verbs import paused_words
from orchestrator.control.replanning import Replanner
from orchestrator.control.snapshot import Look, Lookout
from orchestrator.jobs.job import TERMINAL, JobState
from orchestrator.jobs.output_folder import discard_checkpoints, write_job_file
from orchestrator.knowledge.base_catalog import BaseCatalog
from orchestrator.knowledge.profiles import Profiles, token_budget
from orchestrator.knowledge.swap_times import Swaps
from orchestrator.reporting.client_views import progress_of
from orchestrator.scheduler.policy import DEFAULT
from orchestrator.scheduler.view import Plan
from orchestrator.store.records import JobRecord
from orchestrator.store.store import Store

_PROGRESS_SECONDS = 1.0  # between two writes of progress to the store
_ABSENT_SECONDS = 30.0  # that an actor may not know a job which was given to it
SETTLE_SECONDS = 5.0  # that a job trains at least before it may be moved
_ACTIVE = (TenantState.PREPARING, TenantState.TRAINING)

Call = tuple[Any, ...]
"""Actor's name, method, arguments."""


class Reconciler:
    """Brings the cluster to what the store and the policy want.

    Attributes:
        live: Progress by job, newer than what the store has.
    """

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        bases: BaseCatalog,
        on_start: Callable[[JobRecord], None],
        on_end: Callable[[JobRecord], None],
        profiles: Profiles,
        lookout: Lookout,
        policy: str = DEFAULT,
    ) -> None:
        """Nothing happens before the first tick.

        Args:
            store: The job table.
            fleet: The actors.
            bases: Descriptions of base models.
            on_start: Told of each job that was given to an actor.
            on_end: Told of each job that is over.
            profiles: What was learned of the devices.
            lookout: Builds the scheduler's view.
            policy: Name of the scheduler's policy.
        """
        self._store, self._fleet, self._bases = store, fleet, bases
        self._profiles, self._lookout = profiles, lookout
        self._on_start, self._on_end = on_start, on_end
        self._replanner = Replanner(policy)
        self._grid_stops = GridStops(store)
        self.live: dict[str, dict[str, Any]] = {}
        self._unwritten: set[str] = set()
        self._written = 0.0
        self._absent: dict[tuple[str, int], float] = {}
        self._swaps = Swaps(profiles)
        self._training: dict[tuple[str, int], float] = {}  # job and attempt -> since when it trains (monotonic)

    async def tick(self) -> list[Loss]:
        """One look at the cluster; returns the actors that it found lost."""
        self._fleet.discover()
        losses = await self._fleet.poll()
        for loss in losses:
            self._actor_lost(loss)
        calls = self.observe()
        self._learn()
        calls += self._stop_early()
        await self._lookout.prepare()
        acted = self._act(self._replanner.plan(self.look()))
        calls += self._budgets() + acted  # an actor makes room before a further adapter comes
        await asyncio.gather(*(self._fleet.tell(*call) for call in calls))
        return losses

    def settle(self, members: Iterable[Member]) -> None:
        """Take in the last reports of stopped actors, and put what they did not finish back into the queue."""
        self._profiles.save()
        running = self._running()
        for member in members:
            jobs = running.get(member.name, {})
            for tenant in member.report.tenants if member.report else ():
                job = jobs.get(tenant.job_id)
                if job is not None and job.attempt == tenant.attempt and tenant.state not in _ACTIVE:
                    self._ended(job, tenant)
        for jobs in self._running().values():
            for job in jobs.values():
                self._give_back(job, "the orchestrator was shut down")

    # -- observe -------------------------------------------------------------------------------------------------

    def _running(self) -> dict[str, dict[str, JobRecord]]:
        """Running jobs by actor and id."""
        found: dict[str, dict[str, JobRecord]] = defaultdict(dict)
        for job in self._store.jobs([JobState.RUNNING]):
            found[job.actor or ""][job.id] = job
        return found

    def observe(self) -> list[Call]:
        """Record what the latest reports say of running jobs; returns the calls that follow from it."""
        running = self._running()
        calls: list[Call] = []
        for member in self._fleet.members.values():
            jobs = running.pop(member.name, {})
            if member.fresh:
                calls += self._read_report(member, jobs)
        for name, jobs in running.items():
            for job in jobs.values():
                self._job_lost(job, f"{name} is gone")
        self._write_progress()
        return calls

    def _read_report(self, member: Member, jobs: dict[str, JobRecord]) -> list[Call]:
        report, calls = member.report, []
        if report is None:
            return []
        seen = set()
        for tenant in report.tenants:
            job = jobs.get(tenant.job_id)
            if job is None or (job.attempt, job.boot_id) != (tenant.attempt, report.boot_id):
                calls += self._stray(member, tenant, assigned=job is not None)
                continue
            seen.add(job.id)
            self._absent.pop((job.id, job.attempt), None)
            calls += self._read_tenant(member, job, tenant)
        for job in jobs.values():
            if job.boot_id != report.boot_id:
                self._job_lost(job, f"{member.name} was started anew")
            elif job.id not in seen:
                calls += self._attach_again(member, job)
        return calls

    def _read_tenant(self, member: Member, job: JobRecord, tenant: TenantReport) -> list[Call]:
        if tenant.state not in _ACTIVE:
            if tenant.state is TenantState.DETACHED:
                self._swaps.off(member.slot, job)
            self._ended(job, tenant)
            return [(member.name, "forget", job.id)]
        progress = progress_of(tenant)
        if tenant.state is TenantState.TRAINING:
            self._swaps.trains(member.slot, job)
            self._training.setdefault((job.id, job.attempt), time.monotonic())
            if self.live.get(job.id) != progress:
                self.live[job.id] = progress
                self._unwritten.add(job.id)
        if job.wish == "finish":
            return [(member.name, "finish", job.id, job.reason or "")]
        return [(member.name, "detach", job.id, job.wish != "cancel")] if job.wish else []

    def _stray(self, member: Member, tenant: TenantReport, assigned: bool) -> list[Call]:
        """An adapter that is not where the store says: an end that was recorded already, or a stale attempt."""
        if tenant.state not in _ACTIVE:
            return [(member.name, "forget", tenant.job_id)]
        if assigned:
            return []  # the attempt that was assigned since takes its place
        return [(member.name, "detach", tenant.job_id, True)]

    def _attach_again(self, member: Member, job: JobRecord) -> list[Call]:
        """The actor does not know a job: the call may not have reached it."""
        since = self._absent.setdefault((job.id, job.attempt), time.monotonic())
        if time.monotonic() - since > _ABSENT_SECONDS:
            del self._absent[job.id, job.attempt]
            self._job_lost(job, f"{member.name} does not know it any more")
            return []
        if job.wish in ("cancel", "pause", "yield"):
            self._give_back(job, "it had not started")
            return [(member.name, "detach", job.id, job.wish != "cancel")]
        return [(member.name, "attach", job.spec.to_adapter_spec(job.id).model_dump(), job.attempt)]

    def _write_progress(self) -> None:
        if self._unwritten and time.monotonic() - self._written >= _PROGRESS_SECONDS:
            self._store.set_progress({job_id: self.live[job_id] for job_id in self._unwritten if job_id in self.live})
            self._unwritten.clear()
            self._written = time.monotonic()

    # -- ends ----------------------------------------------------------------------------------------------------

    def _ended(self, job: JobRecord, tenant: TenantReport) -> None:
        """Record how an adapter left its actor. A wish to cancel wins over all but success."""
        progress = progress_of(tenant) if tenant.total_steps else self.live.get(job.id, job.progress)
        if tenant.state is TenantState.SUCCEEDED:
            words = f"succeeded after {tenant.step} steps" + (f": {tenant.reason}" if tenant.reason else "")
            self._move(job, JobState.SUCCEEDED, words, progress=progress, reason=tenant.reason)
            discard_checkpoints(job.output_dir)  # not before: a job whose end is not recorded goes on from the last one
        elif job.wish == "cancel" or tenant.state is TenantState.CANCELLED:
            discard_checkpoints(job.output_dir)
            self._move(job, JobState.CANCELLED, f"cancelled at step {tenant.step}", progress=progress)
        elif tenant.state is TenantState.FAILED:
            reason = tenant.reason or "the actor gave no reason"
            self._move(job, JobState.FAILED, f"failed: {reason}", progress=progress, reason=reason)
        elif job.wish == "pause":
            self._move(job, JobState.PAUSED, f"paused at step {tenant.step}", progress=progress)
        else:
            self._move(job, JobState.QUEUED, f"taken off {job.actor} at step {tenant.step}", progress=progress)

    def _give_back(self, job: JobRecord, reason: str, **changes: Any) -> None:
        """A running job is on no actor any more: do what a person wanted of it, or queue it again."""
        if job.wish == "cancel":
            discard_checkpoints(job.output_dir)
            self._move(job, JobState.CANCELLED, f"cancelled ({reason})")
        elif job.wish == "pause":
            self._move(job, JobState.PAUSED, f"paused ({reason})", **changes)
        else:
            self._move(job, JobState.QUEUED, f"back in the queue: {reason}", reason=None, **changes)

    def _job_lost(self, job: JobRecord, reason: str) -> None:
        """A running job lost its actor through no wish of anybody."""
        if job.wish not in ("cancel", "pause") and job.retries >= job.spec.queue.max_retries:
            words = (
                f"lost its actor {job.retries + 1} times, queue.max_retries is {job.spec.queue.max_retries}; "
                f"the last time: {reason}"
            )
            self._move(job, JobState.FAILED, f"failed: {words}", reason=words)
        else:
            self._give_back(job, reason, retries=job.retries + 1)

    def _actor_lost(self, loss: Loss) -> None:
        for job in self._running().get(loss.name, {}).values():
            self._job_lost(job, f"{loss.name} is lost: {loss.reason}")
        vain = self._fleet.give_up(loss.base_model) if loss.kind is LossKind.UNLOADABLE else []
        for job in self._store.jobs([JobState.QUEUED]) if vain else ():
            if job.spec.base_model == loss.base_model:
                words = f"{loss.base_model} cannot be loaded on {'; '.join(vain)}"
                self._move(job, JobState.FAILED, f"failed: {words}", reason=words)

    def _move(self, job: JobRecord, state: JobState, message: str, **changes: Any) -> None:
        if state is JobState.PAUSED:
            changes["waiting_for"] = paused_words(job)
        moved = self._store.move(job.id, state, message, **changes)
        self.live.pop(job.id, None)
        self._training.pop((job.id, job.attempt), None)
        self._swaps.forget(job)
        self._unwritten.discard(job.id)
        if state in TERMINAL:
            self._on_end(moved)

    # -- decide --------------------------------------------------------------------------------------------------

    def _learn(self) -> None:
        """Take in what the actors have measured."""
        for member in self._fleet.members.values():
            report, base = member.report, self._bases.described(member.base_model)
            if report is None or base is None or not (member.fresh and member.ready):
                continue
            self._profiles.learn(member.slot, base, report)
            if member.load_seconds is not None:
                self._profiles.loaded(member.slot, base.ref, member.load_seconds)
        members = self._fleet.members.values()
        self._profiles.forget_actors({member.report.boot_id for member in members if member.report})
        self._profiles.save_now_and_then()

    def _budgets(self) -> list[Call]:
        """Token budgets that leave room for every adapter that is on an actor, or was just given to it."""
        running = self._running()
        calls: list[Call] = []
        for member in self._fleet.members.values():
            report, base = member.report, self._bases.described(member.base_model)
            profile = self._profiles.of(member.slot, member.base_model)
            if report is None or base is None or profile is None or not report.token_budget:
                continue
            adapters = sum(self._lookout.adapter_bytes(job, base) for job in running.get(member.name, {}).values())
            room = report.memory_limit - profile.memory_model(member.slot).fixed_bytes - adapters
            budget = token_budget(profile, member.slot, room, report.token_budget)
            if budget < report.token_budget or budget not in (report.token_budget, member.sent_budget):
                member.sent_budget = budget
                calls.append((member.name, "budget", budget))
        return calls

    def _stop_early(self) -> list[Call]:
        """Jobs of a halved grid that have fallen behind end now, with what they have learned."""
        calls: list[Call] = []
        for job_id, why in self._grid_stops.due(self.live).items():
            job = self._store.wish(job_id, "finish", why, reason=why)
            if job.actor is not None:
                calls.append((job.actor, "finish", job_id, why))
        return calls

    def look(self) -> Look:
        """The cluster as the scheduler sees it now."""
        return self._lookout.look(self.live, self._movable)

    def _movable(self, job: JobRecord) -> bool:
        """Whether a running job may be taken off its actor: not while it starts, nor soon after."""
        since = self._training.get((job.id, job.attempt))
        return job.wish is None and since is not None and time.monotonic() - since >= SETTLE_SECONDS

    # -- record and act ------------------------------------------------------------------------------------------

    def _act(self, plan: Plan) -> list[Call]:
        """Record a plan; returns the calls that carry it out."""
        queued: dict[str, JobRecord] = {}
        if plan.placements or plan.waiting or plan.rejections:
            queued = {job.id: job for job in self._store.jobs([JobState.QUEUED])}
        self._record_waiting(queued, plan.waiting)
        for job_id, reason in plan.rejections.items():
            self._move(queued[job_id], JobState.FAILED, f"rejected: {reason}", reason=reason)
        calls: list[Call] = []
        for job_id, place in plan.placements.items():
            calls += self._assign(queued[job_id], place)
        calls += self._take_off(plan)
        for place, base_model in plan.rehosts.items():
            self._fleet.start(place, base_model)
        there = self._fleet.by_place()
        for place, job_ids in plan.order.items():
            member = there.get(place)
            if member is not None and member.sent_order != job_ids:
                member.sent_order = job_ids
                calls.append((member.name, "order", list(job_ids)))
        return calls

    def _take_off(self, plan: Plan) -> list[Call]:
        """Pre-empted jobs, and those that go on elsewhere, leave their actors with a checkpoint and join the queue."""
        calls: list[Call] = []
        places = {place.id: place.name for place in self._fleet.views()}
        reasons = {**plan.preemptions, **{job: f"it goes on at {places[p]}" for job, p in plan.moves.items()}}
        running = {job.id: job for job in self._store.jobs([JobState.RUNNING])} if reasons else {}
        for job_id, why in reasons.items():
            job = running.get(job_id)
            if job is not None and job.actor is not None and job.wish is None:
                self._store.wish(job_id, "yield", f"is taken off {job.actor}: {why}")
                self._swaps.asked(job)
                calls.append((job.actor, "detach", job_id, True))
        return calls

    def _record_waiting(self, queued: Mapping[str, JobRecord], waiting: Mapping[str, str]) -> None:
        changed = {job_id: why for job_id, why in waiting.items() if queued[job_id].waiting_for != why}
        if changed:
            self._store.set_waiting(changed)

    def _assign(self, job: JobRecord, place: str) -> list[Call]:
        member = self._fleet.at(place)
        if member is None or member.report is None:
            return []
        try:
            write_job_file(job.spec)
        except OSError as error:
            reason = (
                f"output_dir: {job.output_dir} cannot be written: {error.strerror}; make room or mend its permissions"
            )
            self._move(job, JobState.FAILED, f"failed: {reason}", reason=reason)
            return []
        assigned = self._store.assign(job.id, member.name, member.report.boot_id)
        if assigned is None:
            return []
        self._swaps.given(assigned)
        self._on_start(assigned)
        return [(member.name, "attach", job.spec.to_adapter_spec(job.id).model_dump(), assigned.attempt)]
