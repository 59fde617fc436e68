"""Trackio. Its own environment variables hold, TRACKIO_DIR and TRACKIO_SPACE_ID among them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextvars import Context
from functools import partial

import trackio

from orchestrator.jobs.states import JobState
from orchestrator.tracking.tracker import PROJECT, Point, Run, RunIdentity


def open_run(identity: RunIdentity) -> Run:
    """Begin a run, or resume the one of this name; its name holds the id, by which Trackio tells runs apart."""
    begin = partial(
        trackio.init,
        project=os.environ.get("TRACKIO_PROJECT", PROJECT),
        name=f"{identity.name}-{identity.id}",
        space_id=os.environ.get("TRACKIO_SPACE_ID"),
        config=dict(identity.settings),
        resume="allow",
        embed=False,
        # each run would sample this machine, wherever its job trains
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    # It ends the run that its context knows, and what goes to an ended one reaches no server. So each has a context.
    return _TrackioRun(Context().run(begin))


class _TrackioRun:
    most_at_once = 1

    def __init__(self, run: trackio.Run) -> None:
        self._run = run

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self._run.log(dict(point.values), step=point.step)

    def flush(self) -> None:
        """A thread of its own passes rows on."""

    def finish(self, state: JobState, reason: str | None, step: int) -> None:
        self._run.log({"state": state.value, "reason": reason or ""}, step=step)
        self._run.finish()

    def close(self) -> None:
        self._run.finish()
