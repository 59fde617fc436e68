"""What a tracker is told, and what each of them must be able to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from orchestrator.jobs.report_to import TrackerName
from orchestrator.jobs.states import JobState

PROJECT = "loray"
"""The project, or experiment, that runs are in where the tracker's own environment variable names none."""


@dataclass(frozen=True)
class TrackedJob:
    """A job as of its latest attempt.

    Attributes:
        folder: Its output folder.
        settings: Its fields, every default written out.
        report_to: The trackers that get its metrics.
        state: Where it is in its life.
        reason: Why it ended so, if there is a reason.
    """

    id: str
    name: str
    attempt: int
    folder: str
    settings: dict[str, Any]
    report_to: tuple[TrackerName, ...]
    state: JobState
    reason: str | None = None


@dataclass(frozen=True)
class RunIdentity:
    """By what a tracker knows a run again.

    Attributes:
        id: Unique; the job's, with the number of the attempt where the job was started over.
        name: The job's.
        folder: Its output folder.
        storage: The cluster's folder.
        settings: As in `TrackedJob`.
    """

    id: str
    name: str
    folder: Path
    storage: Path
    settings: Mapping[str, Any]


class Point(NamedTuple):
    """The numbers of an optimizer step, or of an evaluation after it; `time` in Unix seconds."""

    values: Mapping[str, float]
    step: int
    time: float


class Run(Protocol):
    """A run that is open at a tracker. Any method may raise whatever the tracker's library raises.

    Attributes:
        most_at_once: Points that `log` may be given. More than one only where a point that comes again changes nothing.
    """

    most_at_once: int

    def log(self, points: Sequence[Point], /) -> None:
        """Take points, in rising order of their steps; all come again if this raises, else each comes once."""

    def flush(self) -> None:
        """Pass on what was taken."""

    def finish(self, state: JobState, reason: str | None, step: int, /) -> None:
        """The job is over, after this step."""

    def close(self) -> None:
        """Let go of the run, which may be opened again."""


OpenRun: TypeAlias = Callable[[RunIdentity], Run]
"""Begins a run at a tracker, or goes on with the one that has this identity."""


def flat(settings: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """Settings by dotted name: `lora.r`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        path = f"{section}.{name}" if section else name
        found |= flat(value, path) if isinstance(value, Mapping) else {path: value}
    return found
