"""One row for each running job in the Ray dashboard: a named task of the orchestrator that lasts as long as the job."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import ray

from gpu_actor.contract.errors import JobFailedError
from gpu_actor.contract.messages import one_line, short_model_name
from orchestrator.cluster.connection import CONTROLLER, NAMESPACE
from orchestrator.jobs.states import TERMINAL, JobState
from orchestrator.store.records import JobRecord

if TYPE_CHECKING:
    from orchestrator.store.store import Store

logger = logging.getLogger("loray.task_rows")


class TaskRows:
    """The rows of one orchestrator. Every method runs in its event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ends: dict[str, asyncio.Event] = {}
        self._rows: dict[str, asyncio.Task[None]] = {}

    def started(self, job: JobRecord) -> None:
        """Give a job that was given to an actor its row, once."""
        if job.id not in self._rows:
            self._rows[job.id] = asyncio.get_running_loop().create_task(self._show(job))

    async def _show(self, job: JobRecord) -> None:
        spec = job.spec
        row = f"lora[{spec.name}] {short_model_name(spec.base_model)} r={spec.lora.r}"
        orchestrator = ray.get_actor(CONTROLLER, namespace=NAMESPACE)
        try:
            await orchestrator.watch.options(name=row).remote(job.id)
        except ray.exceptions.RayError as error:
            logger.info("%s: %s", row, one_line(error))
        finally:
            del self._rows[job.id]

    def over(self, job_id: str) -> None:
        """Wake those who watch a job: it is over."""
        event = self._ends.pop(job_id, None)
        if event is not None:
            event.set()

    async def watch(self, job_id: str) -> str:
        """Wait for the end of a job; returns its state.

        Raises:
            JobNotFoundError: No job has that id.
            JobFailedError: It failed; the message is its reason.
        """
        job = self._store.get(job_id)
        while job.state not in TERMINAL:
            await self._ends.setdefault(job_id, asyncio.Event()).wait()
            job = self._store.get(job_id)
        if job.state is JobState.FAILED:
            raise JobFailedError(f"job {job.name}: {job.reason}")
        state: str = job.state.value
        return state
