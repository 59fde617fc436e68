"""What is told of an end without being asked: to commands and webhooks that the operator has named (`on_end`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gpu_actor.contract.messages import one_line, plain, shortened
from orchestrator.cluster.cluster_config import ClusterConfig, ClusterFileError, OnEndConfig
from orchestrator.formatting import finite, plural, progress_line
from orchestrator.jobs.states import TERMINAL, JobState
from orchestrator.reporting.client_views import job_view
from orchestrator.store.records import JobRecord
from orchestrator.validation.problems import Problem

if TYPE_CHECKING:
    from orchestrator.store.store import Store

logger = logging.getLogger("loray.notices")

_GATHER_SECONDS = 0.2  # ends that come together are one end of a grid and of the queue
_AT_A_TIME = 2
_MOST_OPEN = 1000  # notices that wait or are under way
_MOST_REMEMBERED = 10_000  # jobs that have ended since the queue was last empty
_FINISH_SECONDS = 10.0
_STDERR_BYTES = 300

Json = dict[str, Any]


class Notices:
    """Tells of ends. Every method runs in the orchestrator's event loop; what it starts never holds that up."""

    def __init__(self, store: Store, config: ClusterConfig) -> None:
        """Nothing is told yet.

        Raises:
            ClusterFileError: A command is not there.
        """
        for number, hook in enumerate(config.on_end):
            if hook.command and shutil.which(hook.command[0]) is None:
                message = f"{hook.command[0]} is no program that can be started where the orchestrator runs"
                raise ClusterFileError([Problem("cluster file", f"on_end[{number}].command", message)])
        self._store, self._hooks = store, config.on_end
        self._ended: list[JobRecord] = []  # that nothing was told of yet
        self._since_empty: dict[str, None] = {}  # ids of those that ended since the queue was last empty
        self._open: set[asyncio.Task[None]] = set()
        self._gathering: asyncio.Task[None] | None = None
        self._turns = asyncio.Semaphore(_AT_A_TIME)
        self._threads = ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="on_end")

    def over(self, job: JobRecord) -> None:
        """A job is over."""
        if not self._hooks:
            return
        self._ended.append(job)
        if self._gathering is None or self._gathering.done():
            self._gathering = asyncio.get_running_loop().create_task(self._gather())

    async def _gather(self) -> None:
        await asyncio.sleep(_GATHER_SECONDS)
        self._tell_all()

    def _tell_all(self) -> None:
        ended, self._ended = self._ended, []
        try:
            for job in ended:
                self._tell("job", job, {"text": progress_line(_facts(job)), "job": _facts(job)})
            for request_id in dict.fromkeys(job.request_id for job in ended):
                self._tell_of_grid(request_id, ended[-1])
            self._tell_of_queue(ended)
        except Exception as error:  # whatever happens here happens to nothing else
            logger.warning("on_end: %s", one_line(error))

    def _tell_of_grid(self, request_id: str, job: JobRecord) -> None:
        jobs = self._store.jobs(requests=[request_id]) if self._wanted("grid") else []
        if len(jobs) > 1 and all(one.state in TERMINAL for one in jobs):
            text = f"{plural(len(jobs), 'job')} that were submitted together are over: {_outcome(jobs)}"
            self._tell("grid", job, {"text": text, "jobs": [_facts(one) for one in jobs]})

    def _tell_of_queue(self, ended: Sequence[JobRecord]) -> None:
        if not ended or not self._wanted("queue"):
            return
        self._since_empty |= dict.fromkeys(job.id for job in ended)
        for job_id in list(self._since_empty)[:-_MOST_REMEMBERED]:
            del self._since_empty[job_id]
        counts = self._store.counts()
        if counts[JobState.QUEUED] or counts[JobState.RUNNING]:
            return
        jobs = [self._store.get(job_id) for job_id in self._since_empty]
        self._since_empty.clear()
        paused = f"; {plural(counts[JobState.PAUSED], 'job')} paused" if counts[JobState.PAUSED] else ""
        text = f"the queue is empty: {_outcome(jobs)}{paused}"
        self._tell("queue", ended[-1], {"text": text, "jobs": [_facts(job) for job in jobs]})

    def _wanted(self, event: str) -> bool:
        return any(event in hook.when for hook in self._hooks)

    def _tell(self, event: str, job: JobRecord, facts: Json) -> None:
        document = json.dumps(finite({"event": event, "time": time.time(), **facts}), ensure_ascii=False).encode()
        for hook in self._hooks:
            if event in hook.when:
                task = asyncio.get_running_loop().create_task(self._deliver(hook, document, job))
                self._open.add(task)
                task.add_done_callback(self._open.discard)

    async def _deliver(self, hook: OnEndConfig, document: bytes, job: JobRecord) -> None:
        if len(self._open) > _MOST_OPEN:
            trouble = f"{_MOST_OPEN} others wait to be told already"
        else:
            async with self._turns:
                try:
                    trouble = await self._attempt(hook, document)
                except Exception as error:
                    trouble = one_line(error)
        if trouble:
            who = hook.command[0] if hook.command else _host(hook)
            # the URL of a webhook is a secret of the operator's
            message = f"on_end: {who} was not told: {trouble.replace(hook.url or who, who)}"
            logger.warning("%s: %s", job.name, message)
            with contextlib.suppress(Exception):
                await self._store.turn(partial(self._store.note, job.id, message))

    async def _attempt(self, hook: OnEndConfig, document: bytes) -> str:
        """Tells once; returns what went wrong, or nothing."""
        if hook.command:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, _run, hook, document)
        return await _post(hook, document)

    async def stop(self) -> None:
        """Tell what is left, for some seconds."""
        if self._gathering is not None:
            self._gathering.cancel()
            self._tell_all()
        if self._open:
            _, late = await asyncio.wait(self._open, timeout=_FINISH_SECONDS)
            if late:
                logger.warning("on_end: %s were not told when the orchestrator ended", plural(len(late), "end"))
            for task in late:
                task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)


def _facts(job: JobRecord) -> Json:
    view = job_view(job)
    del view["spec"], view["loss_curve"], view["forecast"]
    return view


def _outcome(jobs: Sequence[JobRecord]) -> str:
    counts = Counter(job.state.value for job in jobs)
    return ", ".join(f"{counts[state.value]} {state.value}" for state in JobState if counts[state.value])


def _host(hook: OnEndConfig) -> str:
    return urlsplit(hook.url or "").hostname or "the webhook"


def _run(hook: OnEndConfig, document: bytes) -> str:
    """Starts the command, for a limited time; returns what went wrong, or nothing."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            hook.command or (),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,  # so that its children can be ended with it
        )
        try:
            process.communicate(document, timeout=hook.timeout_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"it took more than {hook.timeout_seconds:g} s, and was ended"
        if not process.returncode:
            return ""
        said.seek(max(0, said.seek(0, os.SEEK_END) - _STDERR_BYTES))
        words = shortened(plain(said.read(_STDERR_BYTES).decode(errors="replace")), _STDERR_BYTES)
        return f"exit code {process.returncode}" + (f": {words}" if words else "")


async def _post(hook: OnEndConfig, document: bytes) -> str:
    """Sends the facts to a webhook, in a limited time; returns what went wrong, or nothing."""
    import aiohttp

    limit = aiohttp.ClientTimeout(total=hook.timeout_seconds)
    try:
        async with (
            aiohttp.ClientSession(timeout=limit, trust_env=True) as session,
            session.post(
                hook.url or "", data=document, headers={"Content-Type": "application/json"}, allow_redirects=False
            ) as answer,
        ):
            return "" if 200 <= answer.status < 300 else f"it answered {answer.status}"
    except asyncio.TimeoutError:
        return f"no answer within {hook.timeout_seconds:g} s"
