"""One tick: observe -> decide -> record -> act.

Whatever is decided is in the store before an actor hears of it, and every order may be repeated. So this can be cut
off at any point: the next tick, perhaps in another process, goes on from the store and the reports.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpu_actor.contract.orders import Attach, Detach, Finish, Forget
from gpu_actor.contract.report import TenantReport, TenantState
from orchestrator.cluster.fleet import Fleet
from orchestrator.cluster.member import Instruction, Loss, LossKind, Member
from orchestrator.control.actor_tuning import ActorTuning
from orchestrator.control.grid_stops import GridStops
from orchestrator.control.job_ends import JobEnds
from orchestrator.control.live_progress import LiveProgress
from orchestrator.control.plan_execution import PlanExecution
from orchestrator.control.replanning import Replanner
from orchestrator.control.snapshot import Snapshot, SnapshotBuilder
from orchestrator.jobs.losses import NONE, outlived, tried_alone
from orchestrator.jobs.states import JobState
from orchestrator.knowledge.base_catalog import BaseCatalog
from orchestrator.knowledge.profiles import Profiles
from orchestrator.knowledge.swap_times import Swaps
from orchestrator.reporting.client_views import progress_of
from orchestrator.scheduler.policy import DEFAULT
from orchestrator.scheduler.view import ClusterView, Plan
from orchestrator.store.records import JobRecord, Wish

if TYPE_CHECKING:
    from orchestrator.store.store import Store

_ABSENT_SECONDS = 30.0  # that an actor's report may lack a job which was given to it
_ACTIVE = (TenantState.PREPARING, TenantState.TRAINING)


@dataclass(frozen=True)
class Decision:
    """What was decided on what, and how many seconds that took."""

    view: ClusterView
    plan: Plan
    seconds: float


class Reconciler:
    """Brings the cluster to what the store and the policy want.

    Attributes:
        progress: Of the running jobs.
        ends: Records how jobs leave their actors.
        execution: Carries out plans.
        tuning: Learns from the actors' measurements.
        decision: What the latest tick decided; None as long as it has not.
    """

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        bases: BaseCatalog,
        on_start: Callable[[JobRecord], None],
        on_retry: Callable[[JobRecord], None],
        on_end: Callable[[JobRecord], None],
        profiles: Profiles,
        snapshots: SnapshotBuilder,
        policy: str = DEFAULT,
    ) -> None:
        """Nothing happens before the first tick.

        Args:
            store: The job table.
            fleet: The actors.
            bases: Descriptions of base models.
            on_start: Called with each job that was given to an actor.
            on_retry: Called with each job that is in the queue again because its actor was lost.
            on_end: Called with each job that is over.
            profiles: What was learned of the devices.
            snapshots: Builds the scheduler's view.
            policy: Name of the scheduler's policy.
        """
        self._store, self._fleet, self._profiles, self._snapshots = store, fleet, profiles, snapshots
        self._swaps = Swaps(profiles)
        self.progress = LiveProgress(store)
        self.ends = JobEnds(store, self.progress, self._swaps, on_retry, on_end)
        self.execution = PlanExecution(store, fleet, self.ends, self._swaps, on_start)
        self.tuning = ActorTuning(fleet, bases, profiles, snapshots)
        self._replanner = Replanner(policy)
        self._grid_stops = GridStops(store)
        self.decision: Decision | None = None
        self._absent_since: dict[tuple[str, int], float] = {}  # by job and attempt (monotonic)
        self._barred: set[tuple[str, int]] = set()  # jobs and attempts that their actors have been told to drop

    async def tick(self) -> list[Loss]:
        """Bring the cluster one step further; returns the actors that were found lost."""
        self.decision = None
        self._fleet.discover()
        losses = await self._fleet.poll()
        instructions = await self._store.turn(lambda: self._take_in(losses))
        await self._snapshots.prepare()
        instructions += await self._store.turn(self._decide)
        await self._send(instructions)
        return losses

    async def _send(self, instructions: Sequence[Instruction]) -> None:
        taken = await asyncio.gather(*(self._fleet.send(instruction) for instruction in instructions))
        orders = [instruction.order for instruction, was in zip(instructions, taken, strict=True) if was]
        self._barred |= {(order.job_id, order.attempt) for order in orders if isinstance(order, Detach)}

    def _take_in(self, losses: Sequence[Loss]) -> list[Instruction]:
        """Record what has happened since the last tick; returns the orders that follow from it."""
        for loss in losses:
            self._fleet.end(loss.name)
            self.actor_lost(loss)
        instructions = self.observe()
        self.tuning.learn()
        return instructions + self._stop_early()

    def _decide(self) -> list[Instruction]:
        """Record what the policy wants; returns the orders that carry it out."""
        snapshot, started = self.snapshot(), time.monotonic()
        plan = self._replanner.plan(snapshot)
        self.decision = Decision(snapshot.view, plan, time.monotonic() - started)
        planned = self.execution.record(plan)
        # an actor makes room before a further adapter comes
        return self.tuning.token_budgets(self.running()) + planned

    def settle(self, members: Iterable[Member]) -> None:
        """Take in the last reports of stopped actors, and put what they did not finish back into the queue."""
        self._profiles.save()
        running = self.running()
        for member in members:
            jobs = running.get(member.name, {})
            for tenant in member.report.tenants if member.report else ():
                job = jobs.get(tenant.job_id)
                if job is not None and job.attempt == tenant.attempt and tenant.state not in _ACTIVE:
                    self.ends.left_actor(job, tenant)
        for jobs in self.running().values():
            for job in jobs.values():
                self.ends.give_back(job, "the orchestrator was shut down")

    def running(self) -> dict[str, dict[str, JobRecord]]:
        """Running jobs by actor and id."""
        jobs: dict[str, dict[str, JobRecord]] = defaultdict(dict)
        for job in self._store.jobs([JobState.RUNNING]):
            jobs[job.actor or ""][job.id] = job
        return jobs

    def snapshot(self) -> Snapshot:
        """The cluster as the scheduler sees it now."""
        return self._snapshots.build(self.progress.counters, self._movable)

    def _movable(self, job: JobRecord, last_arrival: float) -> bool:
        """Whether a running job may be taken off its actor: not while it starts, nor soon after."""
        return job.wish is None and self.progress.settled(job, last_arrival)

    # -- reports -------------------------------------------------------------------------------------------------

    def observe(self) -> list[Instruction]:
        """Record what the latest reports say of running jobs; returns the orders that follow from it."""
        running = self.running()
        self._barred &= {(job.id, job.attempt) for jobs in running.values() for job in jobs.values()}
        instructions: list[Instruction] = []
        for member in self._fleet.members.values():
            jobs = running.pop(member.name, {})
            if member.fresh:
                instructions += self._read_report(member, jobs)
        for name, jobs in running.items():
            for job in jobs.values():
                self.ends.lost_actor(job, f"{name} is gone")
        self.progress.write()
        return instructions

    def _read_report(self, member: Member, jobs: Mapping[str, JobRecord]) -> list[Instruction]:
        """What an actor reports of the jobs that it should have, and of others."""
        report = member.report
        if report is None:
            return []
        instructions: list[Instruction] = []
        reported = set()
        for tenant in report.tenants:
            job = jobs.get(tenant.job_id)
            if job is None or (job.attempt, job.boot_id) != (tenant.attempt, report.boot_id):
                instructions += self._misplaced(member, tenant, assigned=job is not None)
                continue
            reported.add(job.id)
            self._absent_since.pop((job.id, job.attempt), None)
            instructions += self._read_tenant(member, job, tenant)
        for job in jobs.values():
            if job.boot_id != report.boot_id:
                self.ends.lost_actor(job, f"{member.name} was started anew")
            elif job.id not in reported:
                instructions += self._attach_again(member, job)
        return instructions

    def _read_tenant(self, member: Member, job: JobRecord, tenant: TenantReport) -> list[Instruction]:
        """What an actor reports of a job that is where it should be."""
        self._tell_of_files(job, tenant)
        if tenant.state not in _ACTIVE:
            if tenant.state is TenantState.DETACHED:
                self._swaps.off(member.place, job)
            self.ends.left_actor(job, tenant)
            return [Instruction(member.name, Forget(job.id, job.attempt))]
        if tenant.state is TenantState.TRAINING:
            self._swaps.trains(member.place, job)
            self.progress.trains(job, progress_of(tenant))
            if job.losses != NONE and self._outlives(job, tenant.step):
                job = self._cleared(job)
        elif tenant.unsaved != self.progress.of(job).get("unsaved", ""):
            self.progress.waits(job, tenant.unsaved)
        if job.wish is None:
            return []
        if job.wish is Wish.FINISH:
            return [Instruction(member.name, Finish(job.id, job.reason or ""))]
        return [Instruction(member.name, Detach(job.id, job.wish is not Wish.CANCEL, job.attempt))]

    def _outlives(self, job: JobRecord, step: int) -> bool:
        return outlived(job.losses, step, time.time() - self._store.assigned_at(job.id))

    def _cleared(self, job: JobRecord) -> JobRecord:
        """Nothing is held against a job any more; from a trial it gives its place to the next, if anybody waits."""
        told = f"is past step {job.losses.step}, where its actors were lost: nothing is held against it"
        self._store.set_losses(job.id, NONE, told)
        others = (other for other in self._store.jobs([JobState.QUEUED]) if _tried_alone(other))
        if job.wish is None and _tried_alone(job) and any(others):
            return self._store.wish(job.id, Wish.YIELD, "makes room: others are to be tried alone next")
        return self._store.get(job.id)

    def _tell_of_files(self, job: JobRecord, tenant: TenantReport) -> None:
        """Make events of what has happened to a job's files since its last report."""
        before = self.progress.of(job)
        news = [note for note in tenant.notes if note not in before.get("notes", ())]
        earlier = before.get("unsaved", "")
        if tenant.unsaved not in ("", earlier):
            news.append(tenant.unsaved)
        elif earlier and not tenant.unsaved and tenant.total_steps:
            news.append("its files can be written again")
        for message in news:
            self._store.note(job.id, message)

    def _misplaced(self, member: Member, tenant: TenantReport, assigned: bool) -> list[Instruction]:
        """An adapter that is not where the store says: an end that was recorded already, or a stale attempt."""
        if tenant.state not in _ACTIVE:
            return [Instruction(member.name, Forget(tenant.job_id, tenant.attempt))]
        if assigned:
            return []  # the attempt that was assigned since takes its place
        return [Instruction(member.name, Detach(tenant.job_id, True, tenant.attempt))]

    def _attach_again(self, member: Member, job: JobRecord) -> list[Instruction]:
        """The actor does not report a job that was given to it: the order may not have reached it, and may yet.

        So one that is wished off is there until the actor has taken the order which bars its attempt.
        """
        if (job.id, job.attempt) in self._barred:
            self.ends.give_back(job, "it had not started")
            return []
        since = self._absent_since.setdefault((job.id, job.attempt), time.monotonic())
        if time.monotonic() - since > _ABSENT_SECONDS:
            del self._absent_since[job.id, job.attempt]
            self.ends.lost_actor(job, f"{member.name} does not know it any more")
            return []
        if job.wish in (Wish.CANCEL, Wish.PAUSE, Wish.YIELD):
            return [Instruction(member.name, Detach(job.id, job.wish is not Wish.CANCEL, job.attempt))]
        return [Instruction(member.name, Attach(job.spec.to_adapter_spec(job.id), job.attempt))]

    def actor_lost(self, loss: Loss) -> None:
        """An actor is gone: its jobs go on elsewhere, and those whose base model can be loaded nowhere fail."""
        jobs = self.running().get(loss.name, {}).values()
        for job in jobs:
            reason = f"{loss.name} is lost: {loss.reason}"
            self.ends.lost_actor(job, reason, by_itself=loss.by_itself, alone=len(jobs) == 1)
        failures = self._fleet.give_up(loss.base_model) if loss.kind is LossKind.UNLOADABLE else []
        for job in self._store.jobs([JobState.QUEUED]) if failures else ():
            if job.spec.base_model == loss.base_model:
                self.ends.fail(job, f"{loss.base_model} cannot be loaded on {'; '.join(failures)}")

    def _stop_early(self) -> list[Instruction]:
        """Jobs of a halved grid that have fallen behind end now, with what they have learned."""
        instructions = []
        for job_id, reason in self._grid_stops.due(self.progress.counters).items():
            job = self._store.wish(job_id, Wish.FINISH, reason, reason=reason)
            if job.actor is not None:
                instructions.append(Instruction(job.actor, Finish(job_id, reason)))
        return instructions


def _tried_alone(job: JobRecord) -> bool:
    return tried_alone(job.losses, job.spec.queue.max_retries)
