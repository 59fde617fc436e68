"""One job's way into one tracker: its rows in order, each once, and its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gpu_actor.paths import file_names
from orchestrator.jobs.report_to import TrackerName
from orchestrator.jobs.states import TERMINAL
from orchestrator.tracking.metric_rows import MetricRows, Row, numbers, place
from orchestrator.tracking.sent import Sent
from orchestrator.tracking.tracker import OpenRun, Point, Run, RunIdentity, TrackedJob

_IDLE_SECONDS = 300.0  # without a row, after which a run is let go of: its job waits or is paused


class Following:
    """What is known of one attempt of a job at one tracker.

    Attributes:
        job: As it was told last; its attempt never changes.
    """

    def __init__(self, job: TrackedJob, tracker: TrackerName, open_run: OpenRun, storage: Path) -> None:
        """Nothing is opened before there is something to say.

        Args:
            job: Whose rows go there.
            tracker: Its name.
            open_run: Opens a run there.
            storage: The cluster's folder.
        """
        self.job = job
        self._tracker, self._open_run, self._storage = tracker, open_run, storage
        self._folder = Path(job.folder)
        self._sent = Sent.read(self._folder, tracker) or Sent(job.id if job.attempt == 1 else f"{job.id}-{job.attempt}")
        self._rows = MetricRows(self._folder / file_names.METRICS)
        self._waiting: list[Row] = []
        self._before: Row | None = None  # the latest row of a step that was read
        self._run: Run | None = None
        self._latest = time.monotonic()

    def go_on(self) -> bool:
        """Pass on what is new; returns whether the job is over and the tracker knows it.

        Raises:
            Exception: Whatever the tracker's library raises; what it did not take is tried again at the next call.
        """
        over = self.job.state in TERMINAL  # asked before the rows: those of an ended job are all there
        if over and self._sent.over:
            return True
        try:
            while self._pass_on():
                pass
            if over:
                self._opened().finish(self.job.state, self.job.reason, self._sent.step)
                self._run = None
                self._note(replace(self._sent, over=True))
        except Exception:
            with contextlib.suppress(Exception):  # whatever state it is in; the first error is the one to tell
                self.close()
            raise
        if not over and self._run is not None and time.monotonic() - self._latest > _IDLE_SECONDS:
            self.close()
        return over

    def close(self) -> None:
        """Let go of the run."""
        run, self._run = self._run, None
        if run is not None:
            run.close()

    def _pass_on(self) -> bool:
        """Pass some rows on; returns whether there may be more."""
        rows = self._waiting or self._rows.more()
        self._waiting = [row for row in rows if place(row) > self._sent.place]
        if self._waiting:
            run, sent = self._opened(), self._sent
            # Noted before they go: a process that dies in between loses some rows to the tracker and doubles none.
            self._note(_after(sent, self._waiting[-1]))
            self._sent = sent
            try:
                self._send(run)
            finally:
                if self._waiting:
                    self._note(self._sent)
            self._latest = time.monotonic()
        self._before = _latest_step(rows) or self._before
        return bool(rows)

    def _send(self, run: Run) -> None:
        before = self._before
        while rows := self._waiting[: run.most_at_once]:
            points = []
            for row in rows:
                points.append(Point(numbers(row, before), row["step"], row["time"]))
                before = before if place(row)[1] else row
            run.log(points)
            self._sent = _after(self._sent, rows[-1])
            self._waiting = self._waiting[len(rows) :]
        run.flush()

    def _opened(self) -> Run:
        if self._run is None:
            job = self.job
            identity = RunIdentity(self._sent.run, job.name, self._folder, self._storage, job.settings)
            self._run = self._open_run(identity)
        return self._run

    def _note(self, sent: Sent) -> None:
        sent.write(self._folder, self._tracker)
        self._sent = sent


def _after(sent: Sent, row: Row) -> Sent:
    step, evaluation = place(row)
    return replace(sent, step=step, evaluation=evaluation, over=False)


def _latest_step(rows: Sequence[Row]) -> Row | None:
    return next((row for row in reversed(rows) if not place(row)[1]), None)
