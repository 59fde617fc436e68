"""One thread for one tracker: what is slow or down holds up this thread alone."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from gpu_actor.contract.messages import one_line
from orchestrator.jobs.report_to import TrackerName
from orchestrator.tracking.following import Following
from orchestrator.tracking.tracker import TrackedJob

logger = logging.getLogger("loray.tracking")

_LOOK_SECONDS = 10.0  # between two looks: each costs every tracker's library something, and nobody looks more often
_REST_SECONDS = 10.0  # after something went wrong
_PATIENCE_SECONDS = 60.0  # that a tracker may take over one job before that is worth a remark


class Follower:
    """Passes the metrics of all jobs that report to one tracker on to it.

    The rows that wait are in the jobs' own files, so nothing piles up in memory however long a tracker is down.
    """

    def __init__(self, tracker: TrackerName, storage: Path, on_over: Callable[[TrackedJob], None]) -> None:
        """Start the thread.

        Args:
            tracker: Its name.
            storage: The cluster's folder.
            on_over: Called with each job whose end the tracker was told.
        """
        self._tracker, self._storage, self._on_over = tracker, storage, on_over
        self._lock = threading.Lock()
        self._jobs: dict[str, TrackedJob] = {}  # in the order in which they are looked at
        self._open: dict[str, Following] = {}  # the thread's own
        self._in_trouble: set[str] = set()  # jobs that a remark was made about
        self._remarks: list[tuple[str, str]] = []
        self._looks_at: tuple[str, float] | None = None  # a job, and since when (monotonic)
        self._hurry, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"loray-{tracker}", daemon=True)
        self._thread.start()

    def follow(self, job: TrackedJob) -> None:
        """A job has begun an attempt, or is over."""
        with self._lock:
            self._jobs[job.id] = job
        self._hurry.set()  # a look at once, unless the tracker is in trouble

    def remarks(self) -> list[tuple[str, str]]:
        """What a person should know since the last call: the job's id, and a sentence."""
        with self._lock:
            looks_at = self._looks_at
            if looks_at is not None and time.monotonic() - looks_at[1] > _PATIENCE_SECONDS:
                message = f"it has not answered for {_PATIENCE_SECONDS:.0f} s"
                self._trouble(looks_at[0], message)
            remarks, self._remarks = self._remarks, []
        return remarks

    def _trouble(self, job_id: str, message: str) -> None:
        if job_id not in self._in_trouble:
            self._in_trouble.add(job_id)
            sentence = f"{self._tracker} does not take the metrics: {message}; they wait in metrics.jsonl"
            self._remarks.append((job_id, sentence))

    def end(self) -> None:
        """Pass on what was written until now, let go of every run, and end."""
        self._ending.set()
        self._hurry.set()

    def join(self, seconds: float) -> None:
        """Wait for that, no longer than that."""
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            self._hurry.clear()  # who comes while it looks wants a further look
            is_last = self._ending.is_set()
            if not self._look_at_all():
                time.sleep(_REST_SECONDS)
            elif is_last:
                break
            else:
                self._hurry.wait(_LOOK_SECONDS)
        for following in self._open.values():
            with contextlib.suppress(Exception):  # nobody is left who would hear of it
                following.close()

    def _look_at_all(self) -> bool:
        """Go on with every job; returns whether all went well. After the first that did not, the others wait too."""
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            with self._lock:
                self._looks_at = job.id, time.monotonic()
            try:
                over = self._following(job).go_on()
            except Exception as error:
                logger.info("%s, job %s", self._tracker, job.name, exc_info=error)
                with self._lock:
                    self._looks_at = None
                    self._trouble(job.id, f"{type(error).__name__}: {one_line(error)}")
                    self._jobs[job.id] = self._jobs.pop(job.id)  # the last one next time
                return False
            with self._lock:
                self._looks_at = None
                if job.id in self._in_trouble:
                    self._in_trouble.remove(job.id)
                    self._remarks.append((job.id, f"{self._tracker} takes the metrics again"))
                if over and self._jobs.get(job.id) is job:
                    del self._jobs[job.id]
            if over:
                self._open.pop(job.id, None)
                self._on_over(job)
        return True

    def _following(self, job: TrackedJob) -> Following:
        following = self._open.get(job.id)
        if following is None or following.job.attempt != job.attempt:
            if following is not None:
                following.close()
            open_run = import_module(f"orchestrator.tracking.{self._tracker}_run").open_run
            following = self._open[job.id] = Following(job, self._tracker, open_run, self._storage)
        following.job = job
        return following
