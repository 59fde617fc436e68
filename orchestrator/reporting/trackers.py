"""The orchestrator's side of the experiment trackers: it tells their process which jobs there are, and never waits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import ray

from gpu_actor.contract.messages import one_line
from orchestrator.cluster.cluster_config import ClusterConfig, ClusterFileError
from orchestrator.cluster.places import HEAD
from orchestrator.jobs.report_to import not_installed
from orchestrator.store.records import JobRecord
from orchestrator.tracking.process import TrackerProcess
from orchestrator.tracking.tracker import TrackedJob
from orchestrator.validation.problems import Problem

if TYPE_CHECKING:
    from orchestrator.store.store import Store

logger = logging.getLogger("loray.trackers")

_PAUSE_SECONDS = 2.0  # between two calls at least: what happens to several jobs meanwhile is told together
_LOOK_SECONDS = 10.0  # between two questions for remarks, where nothing happens to a job
_CALL_SECONDS = 60.0  # the first call waits for the process to start
_FINISH_SECONDS = 15.0


class Trackers:
    """Keeps the process that reports to trackers informed. Every method runs in the orchestrator's event loop.

    There is no such process before a job reports to a tracker.
    """

    def __init__(self, store: Store, config: ClusterConfig) -> None:
        """Nothing is started yet.

        Raises:
            ClusterFileError: The cluster file names a tracker that is not installed.
        """
        if lacking := not_installed(config.report_to):
            raise ClusterFileError([Problem("cluster file", "report_to", lacking)])
        self._store, self._config = store, config
        self._process: Any = None
        self._unsaid: dict[str, TrackedJob] = {}  # the latest of each job
        self._more = asyncio.Event()
        self._talk: asyncio.Task[None] | None = None

    def changed(self, job: JobRecord) -> None:
        """A job was given to an actor, or is over."""
        names = self._config.report_to if job.spec.report_to is None else job.spec.report_to
        if not names or not job.attempt:
            return
        self._unsaid[job.id] = TrackedJob(
            job.id,
            job.name,
            job.attempt,
            job.output_dir,
            job.spec.model_dump(mode="json"),
            tuple(dict.fromkeys(names)),
            job.state,
            job.reason,
        )
        self._more.set()
        if self._talk is None or self._talk.done():
            self._talk = asyncio.get_running_loop().create_task(self._keep_talking())

    async def _keep_talking(self) -> None:
        followed = 1
        while followed or self._unsaid:
            self._more.clear()
            try:
                await self._tell()
                followed, remarks = await self._call("news")
                for job_id, message in remarks:
                    await self._store.turn(partial(self._store.note, job_id, message))
            except Exception as error:  # whatever happens to trackers happens to nothing else
                logger.warning("the process that reports to trackers: %s", one_line(error))
            await asyncio.sleep(_PAUSE_SECONDS)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._more.wait(), _LOOK_SECONDS - _PAUSE_SECONDS)

    async def _tell(self) -> None:
        jobs = dict(self._unsaid)
        if jobs:
            await self._call("follow", list(jobs.values()))
            self._unsaid = {job_id: job for job_id, job in self._unsaid.items() if jobs.get(job_id) is not job}

    async def _call(self, method: str, *arguments: Any, seconds: float = _CALL_SECONDS) -> Any:
        if self._process is None:
            remote = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=4)(TrackerProcess)
            self._process = remote.options(resources={HEAD: 0.001}, enable_task_events=False).remote(
                str(self._config.state_folder)
            )
        return await asyncio.wait_for(getattr(self._process, method).remote(*arguments), seconds)

    async def stop(self) -> None:
        """Let the trackers have what is written, for some seconds, and end the process."""
        if self._talk is not None:
            self._talk.cancel()
        if self._process is None:
            return
        try:
            await self._tell()
            left = await self._call("finish", _FINISH_SECONDS, seconds=_FINISH_SECONDS + 5.0)
            if left:
                logger.warning("%d jobs are over and a tracker does not know it; the next orchestrator goes on", left)
        except Exception as error:
            logger.warning("the process that reports to trackers: %s", one_line(error))
        ray.kill(self._process)
