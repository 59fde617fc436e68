"""Weights & Biases. Its own environment variables hold: WANDB_API_KEY, WANDB_MODE, WANDB_PROJECT and others."""

from __future__ import annotations

import os
from collections.abc import Sequence

# Each run would sample this machine, wherever its job trains; who wants that sets it to false.
if "WANDB_X_DISABLE_STATS" not in os.environ:  # which is the same
    os.environ.setdefault("WANDB__DISABLE_STATS", "true")

import wandb

from orchestrator.jobs.states import JobState
from orchestrator.tracking.tracker import PROJECT, Point, Run, RunIdentity

_INIT_SECONDS = 30


def open_run(identity: RunIdentity) -> Run:
    """Begin a run of this id, or resume it; several can be open at a time."""
    identity.storage.mkdir(parents=True, exist_ok=True)
    return _WandbRun(
        wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=identity.id,
            name=identity.name,
            resume="allow",
            reinit="create_new",
            dir=str(identity.storage),
            config=dict(identity.settings),
            settings=wandb.Settings(
                console="off", silent=True, disable_code=True, disable_git=True, init_timeout=_INIT_SECONDS
            ),
        )
    )


class _WandbRun:
    most_at_once = 1

    def __init__(self, run: wandb.Run) -> None:
        self._run = run

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self._run.log({**point.values, "_timestamp": point.time}, step=point.step)

    def flush(self) -> None:
        """A thread of its own passes rows on."""

    def finish(self, state: JobState, reason: str | None, _step: int) -> None:
        self._run.summary.update({"state": state.value, "reason": reason or ""})
        self._run.finish(exit_code=0 if state is JobState.SUCCEEDED else 1)

    def close(self) -> None:
        self._run.finish()
