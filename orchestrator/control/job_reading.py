"""What the orchestrator answers about jobs; nothing here changes any."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.control.live_progress import LiveProgress
from orchestrator.jobs.output_folder import read_metrics, sampled_metrics
from orchestrator.jobs.owner import OPERATOR
from orchestrator.jobs.states import TERMINAL
from orchestrator.reporting.client_views import job_view
from orchestrator.reporting.finishes import Finishes
from orchestrator.reporting.loss_curves import LossCurves
from orchestrator.reporting.timeline import Timeline
from orchestrator.store.records import JobRecord

if TYPE_CHECKING:
    from orchestrator.store.store import Store

JobDict = dict[str, Any]


class JobReading:
    """The part of the orchestrator that is asked about jobs."""

    def __init__(self, store: Store, progress: LiveProgress, finishes: Finishes) -> None:
        """Nothing is read yet.

        Args:
            store: The job table.
            progress: Of jobs in training.
            finishes: When jobs will be over.
        """
        self._store, self._progress, self._finishes = store, progress, finishes
        self._losses = LossCurves()
        self._timeline = Timeline(store)

    async def list_jobs(self, most_over: int | None = None, owner: str = OPERATOR) -> list[JobDict]:
        """Jobs in the order of arrival: an owner's, all for the operator.

        Args:
            most_over: Of those that are over only so many, the newest: a store keeps the jobs of years.
            owner: Whose.
        """
        await self._finishes.refresh()
        whose = None if owner == OPERATOR else owner
        jobs = self._store.jobs_of(whose, most_over)
        return [self._view(job) for job in jobs]

    async def get_job(self, ref: str, owner: str | None = None) -> JobDict:
        """One job by id or name (the newest of that name; an owner's own come first).

        Raises:
            JobNotFoundError: No job has that id or name.
        """
        await self._finishes.refresh()
        return self._view(self._store.find(ref, owner))

    async def get_jobs(self, ids: Sequence[str]) -> list[JobDict]:
        """Several jobs by their ids, in this order.

        Raises:
            JobNotFoundError: No job has one of the ids.
        """
        await self._finishes.refresh()
        return [self._view(self._store.get(job_id)) for job_id in ids]

    async def metrics(self, ref: str, skip: int = 0, most: int | None = None) -> list[dict[str, Any]]:
        """The rows of a job's `metrics.jsonl` after the first `skip`; with `most`, that many spread over all of it.

        Raises:
            JobNotFoundError: No job has that id or name.
        """
        folder = self._store.find(ref).output_dir
        if most is not None:
            return await asyncio.to_thread(sampled_metrics, folder, most)
        return await asyncio.to_thread(read_metrics, folder, skip)

    async def events(self, ref: str, after: int = 0) -> list[dict[str, Any]]:
        """What happened to a job: `seq`, `time` and `message` of each event after number `after`.

        Raises:
            JobNotFoundError: No job has that id or name.
        """
        return self._store.events(self._store.find(ref).id, after)

    async def recent_events(self, most: int = 20, owner: str = OPERATOR) -> list[dict[str, Any]]:
        """The latest events of an owner's jobs, of all for the operator: `seq`, `time`, `job_id`, `name`, `message`."""
        return self._store.recent_events(most, None if owner == OPERATOR else owner)

    async def timeline(self, ids: Sequence[str]) -> dict[str, Any]:
        """Where jobs were when, and how full the places were: see `orchestrator.reporting.timeline`.

        Args:
            ids: Of the jobs.
        """
        return self._timeline.view(ids)

    def _view(self, job: JobRecord) -> JobDict:
        live = self._progress.counters.get(job.id)
        expected = self._finishes.of(job.id) if job.state not in TERMINAL else None
        return job_view(job, live, self._losses.of(job.id), expected)
