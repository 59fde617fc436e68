"""How far the jobs on the actors are: as of their latest reports, while the store is written to once a second."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from orchestrator.store.records import JobRecord
from orchestrator.store.store import Store

SETTLE_SECONDS = 5.0  # that a job trains at least before it may be moved
_WRITE_SECONDS = 1.0  # between two writes to the store


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
        self._training_since: dict[tuple[str, int], float] = {}  # by job and attempt (monotonic)

    def trains(self, job: JobRecord, counters: dict[str, Any]) -> None:
        """Take in that a job is in training, and how far it is."""
        self._training_since.setdefault((job.id, job.attempt), time.monotonic())
        if self.counters.get(job.id) != counters:
            self.counters[job.id] = counters
            self._unwritten.add(job.id)

    def of(self, job: JobRecord) -> Mapping[str, Any]:
        """The newest counters of a job."""
        newest: Mapping[str, Any] = self.counters.get(job.id, job.progress)
        return newest

    def settled(self, job: JobRecord) -> bool:
        """Whether a job has trained for a while where it is, so that moving it is no waste."""
        since = self._training_since.get((job.id, job.attempt))
        return since is not None and time.monotonic() - since >= SETTLE_SECONDS

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
        self._training_since.pop((job.id, job.attempt), None)
