"""The process that reports to trackers: it alone loads their libraries, and what they do to it concerns nobody else."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from gpu_actor.contract.messages import one_line
from gpu_actor.storage.small_file import write_whole
from orchestrator.jobs.report_to import TrackerName
from orchestrator.jobs.states import TERMINAL, JobState
from orchestrator.priority import come_after_training
from orchestrator.tracking.follower import Follower
from orchestrator.tracking.tracker import TrackedJob

logger = logging.getLogger("loray.tracking")

_FOLDER = "tracking"


class TrackerProcess:
    """Follows jobs until each of their trackers was told the end; a Ray actor is made of it.

    It keeps a list of them in the cluster's folder, so that a new process goes on where an earlier one died.
    """

    def __init__(self, storage: str) -> None:
        """Go on with the jobs of an earlier process.

        Args:
            storage: The cluster's folder.
        """
        come_after_training()
        self._storage = Path(storage)
        self._list = self._storage / _FOLDER
        self._list.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._followers: dict[TrackerName, Follower] = {}
        self._unended: dict[str, set[TrackerName]] = {}  # trackers that were not told the end, by job
        for path in self._list.glob("*.json"):
            try:
                self._begin(_read(path))
            except (OSError, ValueError, KeyError, TypeError) as error:
                logger.warning("%s is not readable (%s); its job is not followed further", path, one_line(error))

    def follow(self, jobs: Sequence[TrackedJob]) -> None:
        """Jobs have begun an attempt, or are over; may be repeated.

        Raises:
            OSError: The list cannot be written.
        """
        for job in jobs:
            write_whole(self._list / f"{job.id}.json", json.dumps(asdict(job)))
            self._begin(job)

    def news(self) -> tuple[int, list[tuple[str, str]]]:
        """How many jobs are followed, and what a person should know since the last call: a job's id and a sentence."""
        remarks = [remark for follower in self._followers.values() for remark in follower.remarks()]
        return len(self._unended), remarks

    def finish(self, seconds: float) -> int:
        """Let every tracker have what was written until now and let go of its runs, for no longer than some seconds.

        Returns:
            The jobs that are over and whose end a tracker was not told.
        """
        deadline = time.monotonic() + seconds
        for follower in self._followers.values():
            follower.end()
        for follower in self._followers.values():
            follower.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            return sum(_read(self._list / f"{job_id}.json").state in TERMINAL for job_id in self._unended)

    def _begin(self, job: TrackedJob) -> None:
        with self._lock:
            self._unended[job.id] = set(job.report_to)
            for name in job.report_to:
                if name not in self._followers:
                    self._followers[name] = Follower(name, self._storage, self._told_of(name))
                self._followers[name].follow(job)

    def _told_of(self, tracker: TrackerName) -> Callable[[TrackedJob], None]:
        def told(job: TrackedJob) -> None:
            with self._lock:
                left = self._unended.get(job.id, set())
                left.discard(tracker)
                if not left and self._unended.pop(job.id, None) is not None:
                    (self._list / f"{job.id}.json").unlink(missing_ok=True)

        return told


def _read(path: Path) -> TrackedJob:
    fields = json.loads(path.read_text("utf-8"))
    fields |= {"state": JobState(fields["state"]), "report_to": tuple(fields["report_to"])}
    return TrackedJob(**fields)
