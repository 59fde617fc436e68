"""What a person can ask of one job. Asking twice changes nothing more, because Ray may repeat a call.

The state of a running job changes only when its actor has let go of it: until then the job carries the wish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpu_actor.contract.errors import IllegalTransitionError
from orchestrator.jobs.output_folder import discard_checkpoints, discard_run, newest_checkpoint
from orchestrator.jobs.states import TERMINAL, JobState
from orchestrator.store.records import JobRecord, Wish

if TYPE_CHECKING:
    from orchestrator.store.store import Store


def cancel(store: Store, job: JobRecord) -> JobRecord:
    """Give a job up and remove its checkpoints."""
    if job.state is JobState.CANCELLED or job.wish is Wish.CANCEL:
        return job
    if job.state is JobState.RUNNING:
        return store.wish(job.id, Wish.CANCEL, "asked to cancel")
    job = store.move(job.id, JobState.CANCELLED, "cancelled")
    store.afterwards(lambda: discard_checkpoints(job.output_dir))
    return job


def pause(store: Store, job: JobRecord) -> JobRecord:
    """Take a job off its actor, with a checkpoint, and hold it."""
    if job.state is JobState.PAUSED or job.wish is Wish.PAUSE:
        return job
    if job.state is JobState.RUNNING:
        _refuse_if_cancelling(job)
        return store.wish(job.id, Wish.PAUSE, "asked to pause")
    return store.move(job.id, JobState.PAUSED, "paused", waiting_for=resume_hint(job))


def resume(store: Store, job: JobRecord) -> JobRecord:
    """Let a paused job go on."""
    if job.state in TERMINAL:
        remedy = "submit it again" if job.state is JobState.SUCCEEDED else "`loray retry` puts it back into the queue"
        raise IllegalTransitionError(f"job {job.name} is {job.state.value} and cannot be resumed; {remedy}")
    _refuse_if_cancelling(job)
    if job.wish is not None:
        return store.wish(job.id, None, "asked to go on")
    if job.state is JobState.PAUSED:
        return store.move(job.id, JobState.QUEUED, "resumed")
    return job


def checkpoint_to_retry(job: JobRecord, *, from_start: bool) -> str | None:
    """The newest checkpoint of a job that may be retried, by its name; where none is to be used, its run is removed.

    Args:
        job: Which one.
        from_start: Use nothing of the old run. Else the job goes on from its newest checkpoint, if there is one (a
            cancelled job has none).

    Raises:
        StorageError: Its files are in a storage that does not answer.
    """
    checkpoint = None if from_start else newest_checkpoint(job.output_dir)
    if checkpoint is None:
        discard_run(job.output_dir)
    return checkpoint


def retry(store: Store, job: JobRecord, checkpoint: str | None) -> JobRecord:
    """Put a failed or cancelled job back into the queue, under its own id.

    Args:
        store: The job table.
        job: Which one.
        checkpoint: As `checkpoint_to_retry` gave it.

    Raises:
        IllegalTransitionError: As `may_retry`.
    """
    if not may_retry(store, job):
        return job
    if checkpoint is not None:
        message = f"retried: it goes on from {checkpoint}"
        return store.move(job.id, JobState.QUEUED, message, retries=0, losses=None, reason=None)
    anew: dict[str, Any] = {"retries": 0, "losses": None, "progress": {}, "reason": None, "started_at": None}
    return store.move(job.id, JobState.QUEUED, "retried: it starts over", **anew)


def may_retry(store: Store, job: JobRecord) -> bool:
    """Whether a job is to be retried; False where that was done already.

    Raises:
        IllegalTransitionError: It neither failed nor was cancelled, a live job has its name or folder, or a newer job
            has used its folder.
    """
    if job.state is JobState.QUEUED:
        return False
    if job.state not in (JobState.FAILED, JobState.CANCELLED):
        raise IllegalTransitionError(
            f"job {job.name} is {job.state.value}; only a job that is FAILED or CANCELLED can be retried"
        )
    for conflict in store.live_conflicts([job.spec]):
        raise IllegalTransitionError(f"job {job.name} cannot be retried: {conflict.message}")
    newer = store.newer_in_folder(job)
    if newer is not None:
        raise IllegalTransitionError(
            f"job {job.name} ({job.id}) cannot be retried: its output folder {job.output_dir} belongs to the newer job "
            f"{newer.name} ({newer.id}, {newer.state.value}); submit it again with another output_dir"
        )
    return True


def resume_hint(job: JobRecord) -> str:
    """What a paused job waits for."""
    return f"somebody to let it go on (`loray resume {job.name}`)"


def _refuse_if_cancelling(job: JobRecord) -> None:
    if job.wish is Wish.CANCEL:
        raise IllegalTransitionError(f"job {job.name} is being cancelled; wait for it, then `loray retry` it")
