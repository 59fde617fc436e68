"""How a job leaves its actor or the queue: what becomes of it, of its checkpoints, and of a wish that it carries."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpu_actor.contract.report import TenantReport, TenantState
from orchestrator.control.job_verbs import resume_hint
from orchestrator.control.live_progress import LiveProgress
from orchestrator.jobs import losses
from orchestrator.jobs.output_folder import discard_checkpoints
from orchestrator.jobs.states import TERMINAL, JobState
from orchestrator.knowledge.swap_times import Swaps
from orchestrator.reporting.client_views import progress_of
from orchestrator.store.live_jobs import LIVE
from orchestrator.store.records import JobRecord, Wish

if TYPE_CHECKING:
    from orchestrator.store.store import Store


class JobEnds:
    """Brings jobs of one orchestrator into the states that they have after their actors or the queue."""

    def __init__(
        self,
        store: Store,
        progress: LiveProgress,
        swaps: Swaps,
        on_retry: Callable[[JobRecord], None],
        on_end: Callable[[JobRecord], None],
    ) -> None:
        """Nothing happens yet.

        Args:
            store: The job table.
            progress: Of the running jobs.
            swaps: Times how long jobs take to leave.
            on_retry: Called with each job that is in the queue again because its actor was lost.
            on_end: Called with each job that is over.
        """
        self._store, self._progress, self._swaps = store, progress, swaps
        self._on_retry, self._on_end = on_retry, on_end

    def left_actor(self, job: JobRecord, tenant: TenantReport) -> None:
        """Record how an adapter left its actor, as the actor reports it. A wish to cancel wins over all but success."""
        counters = progress_of(tenant) if tenant.total_steps else self._progress.of(job)
        if tenant.state is TenantState.SUCCEEDED:
            message = f"succeeded after {tenant.step} steps" + (f": {tenant.reason}" if tenant.reason else "")
            self._move(job, JobState.SUCCEEDED, message, progress=counters, reason=tenant.reason)
            # not before: a job whose end is not recorded goes on from the last one
            self._store.afterwards(lambda: discard_checkpoints(job.output_dir))
        elif job.wish is Wish.CANCEL or tenant.state is TenantState.CANCELLED:
            self._store.afterwards(lambda: discard_checkpoints(job.output_dir))
            self._move(job, JobState.CANCELLED, f"cancelled at step {tenant.step}", progress=counters)
        elif tenant.state is TenantState.FAILED:
            self.fail(job, tenant.reason or "the actor gave no reason", progress=counters)
        elif job.wish is Wish.PAUSE:
            self._move(job, JobState.PAUSED, f"paused at step {tenant.step}", progress=counters)
        else:
            self._move(job, JobState.QUEUED, f"taken off {job.actor} at step {tenant.step}", progress=counters)

    def give_back(self, job: JobRecord, reason: str, **changes: Any) -> JobRecord:
        """A running job is on no actor any more: do what a person wanted of it, or queue it again."""
        if job.wish is Wish.CANCEL:
            self._store.afterwards(lambda: discard_checkpoints(job.output_dir))
            return self._move(job, JobState.CANCELLED, f"cancelled ({reason})")
        if job.wish is Wish.PAUSE:
            return self._move(job, JobState.PAUSED, f"paused ({reason})", **changes)
        return self._move(job, JobState.QUEUED, f"back in the queue: {reason}", reason=None, **changes)

    def lost_actor(self, job: JobRecord, reason: str, *, by_itself: bool = False, alone: bool = False) -> None:
        """A running job lost its actor through no wish of anybody: queue it again, unless it is the cause.

        Args:
            job: Which one.
            reason: How the actor was lost.
            by_itself: Whether the process died by itself; else the job had no part in it.
            alone: Whether no other job was there.
        """
        now, most = time.time(), job.spec.queue.max_retries
        step, seconds = int(self._progress.of(job).get("step") or 0), now - self._store.assigned_at(job.id)
        lost = losses.LostActor(job.actor or "", reason, by_itself, alone, step, seconds, now)
        held, culprit = losses.after(job.losses, lost), losses.is_culprit(job.losses, lost, most)
        changes: dict[str, Any] = {"losses": held.row(), "retries": job.retries + culprit}
        if culprit:
            self._clear_others(job, held)
        if culprit and len(held.deaths) > most and job.wish not in (Wish.CANCEL, Wish.PAUSE):
            self.fail(job, losses.culprit_reason(held, reason), **changes)
            return
        left = self.give_back(job, reason, waiting_for=held.waits(now), **changes)
        if left.state is JobState.QUEUED:
            self._store.afterwards(lambda: self._on_retry(left))

    def _clear_others(self, culprit: JobRecord, held: losses.Losses) -> None:
        """Nobody else is suspected any more for the actors that a job has killed."""
        for job in self._store.jobs(LIVE):
            left = losses.explained(job.losses, held)
            if job.id != culprit.id and left != job.losses:
                self._store.set_losses(job.id, left, f"is cleared: {culprit.name} was alone on an actor that died")

    def fail(self, job: JobRecord, reason: str, *, verb: str = "failed", **changes: Any) -> None:
        """A job has failed; `verb` begins the message of its last event."""
        self._move(job, JobState.FAILED, f"{verb}: {reason}", reason=reason, **changes)

    def _move(self, job: JobRecord, state: JobState, message: str, **changes: Any) -> JobRecord:
        if state is JobState.PAUSED:
            changes["waiting_for"] = resume_hint(job)
        moved = self._store.move(job.id, state, message, **changes)
        self._progress.forget(job)
        self._swaps.forget(job)
        if state in TERMINAL:
            self._store.afterwards(lambda: self._on_end(moved))
        return moved
