"""How far the jobs on the actors are: as of their latest reports, while the store is written to once a second."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.store.records import JobRecord

if TYPE_CHECKING:
    from orchestrator.store.store import Store

SETTLE_SECONDS = 5.0  # that a job trains at least before it may be moved
SETTLE_STEPS = 10  # that it does at least before it is moved although nobody has come since it began
_WRITE_SECONDS = 1.0  # between two writes to the store


def is_settled(seconds: float, steps: float, *, somebody_came: bool) -> bool:
    """Whether a job has trained for long enough where it is, so that moving it is no waste.

    Before anybody comes, only better estimates can call for another plan than the one by which it began. They change
    most in the first steps.

    Args:
        seconds: That it has trained there.
        steps: That it has done there.
        somebody_came: Whether a job has been submitted since it began there.
    """
    return seconds >= SETTLE_SECONDS and (steps >= SETTLE_STEPS or somebody_came)


@dataclass(frozen=True)
class _Begin:
    """When a job began to train where it is."""

    monotonic: float
    time: float  # Unix
    step: int


class LiveProgress:
    """The progress of all running jobs.

    Attributes:
        counters: By job id, the counters of its reports (`progress_of`); newer than what the store has.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.counters: dict[str, dict[str, Any]] = {}
        self._unwritten: set[str] = set()
        self._written_at = 0.0  # monotonic
        self._begun: dict[tuple[str, int], _Begin] = {}  # by job and attempt

    def trains(self, job: JobRecord, counters: dict[str, Any]) -> None:
        """Take in that a job is in training, and how far it is."""
        now = _Begin(time.monotonic(), time.time(), _step(counters))
        self._begun.setdefault((job.id, job.attempt), now)
        self._take(job, counters)

    def waits(self, job: JobRecord, unsaved: str) -> None:
        """Take in that a job which is being prepared waits for the storage, and why; empty: not any more."""
        self._take(job, {**self.of(job), "unsaved": unsaved})

    def _take(self, job: JobRecord, counters: dict[str, Any]) -> None:
        if self.counters.get(job.id) != counters:
            self.counters[job.id] = counters
            self._unwritten.add(job.id)

    def of(self, job: JobRecord) -> Mapping[str, Any]:
        """The newest counters of a job."""
        newest: Mapping[str, Any] = self.counters.get(job.id, job.progress)
        return newest

    def settled(self, job: JobRecord, last_arrival: float) -> bool:
        """Whether a job has trained for long enough where it is.

        Args:
            job: The job.
            last_arrival: When the latest job was submitted (Unix time).
        """
        begun = self._begun.get((job.id, job.attempt))
        if begun is None:
            return False
        steps = _step(self.of(job)) - begun.step
        return is_settled(time.monotonic() - begun.monotonic, steps, somebody_came=last_arrival >= begun.time)

    def write(self) -> None:
        """Bring the store up to date, if it was not a moment ago."""
        if self._unwritten and time.monotonic() - self._written_at >= _WRITE_SECONDS:
            self._store.set_progress({job_id: self.counters[job_id] for job_id in self._unwritten})
            self._unwritten.clear()
            self._written_at = time.monotonic()

    def forget(self, job: JobRecord) -> None:
        """A job has left its actor: from now on the store has its progress."""
        self.counters.pop(job.id, None)
        self._unwritten.discard(job.id)
        self._begun.pop((job.id, job.attempt), None)


def _step(counters: Mapping[str, Any]) -> int:
    return int(counters.get("step") or 0)
