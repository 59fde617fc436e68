"""The states of a job, and the legal ways between them."""

from __future__ import annotations

from enum import Enum

from gpu_actor.contract.errors import IllegalTransitionError


class JobState(str, Enum):
    """Where a job is in its life."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
"""The states of a job that is over (FAILED and CANCELLED jobs come back by a retry only)."""

_NEXT: dict[JobState, tuple[JobState, ...]] = {
    JobState.QUEUED: (JobState.RUNNING, JobState.PAUSED, JobState.CANCELLED, JobState.FAILED),
    JobState.RUNNING: (
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.CANCELLED,
        JobState.QUEUED,
        JobState.PAUSED,
    ),
    JobState.PAUSED: (JobState.QUEUED, JobState.CANCELLED),
    JobState.SUCCEEDED: (),
    JobState.FAILED: (JobState.QUEUED,),
    JobState.CANCELLED: (JobState.QUEUED,),
}


def check_transition(old: JobState, new: JobState) -> None:
    """Refuses a change of state that is not legal.

    Raises:
        IllegalTransitionError: The change is not legal; the message says which ones are.
    """
    if new in _NEXT[old]:
        return
    allowed = ", ".join(state.value for state in _NEXT[old])
    remedy = f"allowed from here: {allowed}" if allowed else "it is over for good; submit a new job"
    raise IllegalTransitionError(f"a job that is {old.value} cannot become {new.value}; {remedy}")
