"""How a job leaves its actor or the queue: what becomes of it, of its checkpoints, and of a wish that it carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpu_actor.contract.report import TenantReport, TenantState
from orchestrator.control.job_verbs import resume_hint
from orchestrator.control.live_progress import LiveProgress
from orchestrator.jobs.job import TERMINAL, JobState
from orchestrator.jobs.output_folder import discard_checkpoints
from orchestrator.knowledge.swap_times import Swaps
from orchestrator.reporting.client_views import progress_of
from orchestrator.store.records import JobRecord, Wish

if TYPE_CHECKING:
    from orchestrator.store.store import Store


class JobEnds:
    """Brings jobs of one orchestrator into the states that they have after their actors or the queue."""

    def __init__(self, store: Store, progress: LiveProgress, swaps: Swaps, on_end: Callable[[JobRecord], None]) -> None:
        """Nothing happens yet.

        Args:
            store: The job table.
            progress: Of the running jobs.
            swaps: Times how long jobs take to leave.
            on_end: Called with each job that is over.
        """
        self._store, self._progress, self._swaps, self._on_end = store, progress, swaps, on_end

    def left_actor(self, job: JobRecord, tenant: TenantReport) -> None:
        """Record how an adapter left its actor, as the actor reports it. A wish to cancel wins over all but success."""
        counters = progress_of(tenant) if tenant.total_steps else self._progress.of(job)
        if tenant.state is TenantState.SUCCEEDED:
            message = f"succeeded after {tenant.step} steps" + (f": {tenant.reason}" if tenant.reason else "")
            self._move(job, JobState.SUCCEEDED, message, progress=counters, reason=tenant.reason)
            discard_checkpoints(job.output_dir)  # not before: a job whose end is not recorded goes on from the last one
        elif job.wish is Wish.CANCEL or tenant.state is TenantState.CANCELLED:
            discard_checkpoints(job.output_dir)
            self._move(job, JobState.CANCELLED, f"cancelled at step {tenant.step}", progress=counters)
        elif tenant.state is TenantState.FAILED:
            self.fail(job, tenant.reason or "the actor gave no reason", progress=counters)
        elif job.wish is Wish.PAUSE:
            self._move(job, JobState.PAUSED, f"paused at step {tenant.step}", progress=counters)
        else:
            self._move(job, JobState.QUEUED, f"taken off {job.actor} at step {tenant.step}", progress=counters)

    def give_back(self, job: JobRecord, reason: str, **changes: Any) -> None:
        """A running job is on no actor any more: do what a person wanted of it, or queue it again."""
        if job.wish is Wish.CANCEL:
            discard_checkpoints(job.output_dir)
            self._move(job, JobState.CANCELLED, f"cancelled ({reason})")
        elif job.wish is Wish.PAUSE:
            self._move(job, JobState.PAUSED, f"paused ({reason})", **changes)
        else:
            self._move(job, JobState.QUEUED, f"back in the queue: {reason}", reason=None, **changes)

    def lost_actor(self, job: JobRecord, reason: str) -> None:
        """A running job lost its actor through no wish of anybody: queue it again, as often as it may."""
        most = job.spec.queue.max_retries
        if job.wish not in (Wish.CANCEL, Wish.PAUSE) and job.retries >= most:
            times = f"lost its actor {job.retries + 1} times, queue.max_retries is {most}"
            self.fail(job, f"{times}; the last time: {reason}")
        else:
            self.give_back(job, reason, retries=job.retries + 1)

    def fail(self, job: JobRecord, reason: str, *, verb: str = "failed", **changes: Any) -> None:
        """A job has failed; `verb` begins the message of its last event."""
        self._move(job, JobState.FAILED, f"{verb}: {reason}", reason=reason, **changes)

    def _move(self, job: JobRecord, state: JobState, message: str, **changes: Any) -> None:
        if state is JobState.PAUSED:
            changes["waiting_for"] = resume_hint(job)
        moved = self._store.move(job.id, state, message, **changes)
        self._progress.forget(job)
        self._swaps.forget(job)
        if state in TERMINAL:
            self._on_end(moved)
