"""One row for each job in the Ray dashboard: a named task of the orchestrator that lasts as long as the job.

The task has an argument that is there once the job has started, so that Ray shows it as pending until then. No other
call between the actors is recorded by Ray (`enable_task_events`): among their polls nobody would find the jobs.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray

from gpu_actor.contract.errors import JobFailedError
from gpu_actor.contract.messages import one_line, short_model_name
from orchestrator.cluster.connection import CONTROLLER, NAMESPACE
from orchestrator.jobs.states import JobState
from orchestrator.store.records import JobRecord

if TYPE_CHECKING:
    from orchestrator.store.store import Store

MOST_PENDING = 1000  # each costs the orchestrator a stack; further jobs get their rows when they start

logger = logging.getLogger("loray.task_rows")


@dataclass(frozen=True)
class _Row:
    """A row, and what it waits for."""

    start: asyncio.Event = field(default_factory=asyncio.Event)
    end: asyncio.Event = field(default_factory=asyncio.Event)


class TaskRows:
    """The rows of one orchestrator. Every method runs in its event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: dict[str, _Row] = {}  # by job
        self._shown: set[asyncio.Task[None]] = set()

    def accepted(self, job: JobRecord) -> None:
        """Give a job that waits its row, once."""
        if job.id not in self._rows and len(self._rows) < MOST_PENDING:
            self._begin(job)

    def started(self, job: JobRecord) -> None:
        """A job was given to an actor: its row is pending no more."""
        if job.id not in self._rows:
            self._begin(job)
        self._rows[job.id].start.set()

    def over(self, job_id: str) -> None:
        """A job is over, and so is its row; a retry gets another."""
        row = self._rows.pop(job_id, None)
        if row is not None:
            row.start.set()
            row.end.set()

    def _begin(self, job: JobRecord) -> None:
        self._rows[job.id] = _Row()
        shown = asyncio.get_running_loop().create_task(self._show(job))
        self._shown.add(shown)
        shown.add_done_callback(self._shown.discard)

    async def _show(self, job: JobRecord) -> None:
        spec = job.spec
        name = f"lora[{spec.name}] {short_model_name(spec.base_model)} r={spec.lora.r}"
        orchestrator: Any = ray.get_actor(CONTROLLER, namespace=NAMESPACE)
        try:
            start = orchestrator.wait_for_start.remote(job.id)
            await orchestrator.watch.options(name=name, enable_task_events=True).remote(job.id, start)
        except ray.exceptions.RayError as error:
            logger.info("%s: %s", name, one_line(error))

    async def wait_for_start(self, job_id: str) -> None:
        """Wait until a job is given to an actor, or over."""
        if row := self._rows.get(job_id):
            await row.start.wait()

    async def watch(self, job_id: str) -> str:
        """Wait for the end of a job; returns its state.

        Raises:
            JobNotFoundError: No job has that id.
            JobFailedError: It failed or was cancelled; the message is its reason.
        """
        if row := self._rows.get(job_id):
            await row.end.wait()
        job = self._store.get(job_id)
        if job.state in (JobState.FAILED, JobState.CANCELLED):
            raise JobFailedError(f"job {job.name}: {job.reason or job.state.value}")
        state: str = job.state.value
        return state
