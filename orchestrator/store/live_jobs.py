"""The jobs that are not over, as the table has them, at hand: of 10,000 rows only those that changed are read again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from orchestrator.jobs.states import TERMINAL, JobState
from orchestrator.store.records import JobRecord

LIVE = frozenset(JobState) - TERMINAL


class LiveJobs:
    """Records by id. Whoever changes a row must `touch` it, whether or not the change is committed after all."""

    def __init__(self, read: Callable[[Collection[str] | None], Iterable[JobRecord]]) -> None:
        """Nothing is read yet.

        Args:
            read: Reads the rows of some ids, whatever their state; of all jobs that are not over for None.
        """
        self._read = read
        self._jobs: dict[str, JobRecord] | None = None
        self._touched: set[str] = set()

    def touch(self, job_id: str) -> None:
        """A row may have changed."""
        self._touched.add(job_id)

    def of(self, states: Collection[JobState]) -> list[JobRecord]:
        """Jobs in some states, none of which is an end, in the order of arrival."""
        if self._jobs is None:
            self._jobs = {job.id: job for job in self._read(None)}
        elif self._touched:
            for job_id in self._touched:
                self._jobs.pop(job_id, None)
            self._jobs |= {job.id: job for job in self._read(self._touched) if job.state in LIVE}
            self._jobs = dict(sorted(self._jobs.items(), key=lambda item: item[1].seq))
        self._touched = set()
        return [job for job in self._jobs.values() if job.state in states]
