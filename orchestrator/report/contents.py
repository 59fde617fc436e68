"""What a report is about, from a running orchestrator or from output folders alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_actor.contract.errors import LorayError
from gpu_actor.paths import file_names
from orchestrator.formatting import LIVE_STATES, View
from orchestrator.jobs.job_file import load_jobs
from orchestrator.jobs.output_folder import read_metrics

Row = Mapping[str, Any]

LAST = 10
"""Rows whose mean is the training loss at the end: single steps are noisy."""

_MOST_ROWS = 1000  # of a curve

MOST_JOBS = 200
"""Jobs that a page has room for; of more the newest are shown, those that are not over first."""


@dataclass(frozen=True)
class Contents:
    """What a page shows.

    Attributes:
        title: Of the page.
        jobs: As the orchestrator shows them, in the order of submission.
        rows: Of each job's `metrics.jsonl`, by id.
        timeline: As `Client.timeline` returns it; None where there is no orchestrator.
        left_out: Whether there are older jobs, for which the page has no room.
        now: When it was made (Unix seconds).
    """

    title: str
    jobs: Sequence[View]
    rows: Mapping[str, Sequence[Row]]
    timeline: Mapping[str, Any] | None = None
    left_out: bool = False
    now: float = field(default_factory=time.time)


def essential(rows: Sequence[Row]) -> list[Row]:
    """Of a job's rows those that a page needs, however long the job: of each stretch the lowest and the highest loss.

    The last ones all stay, because a mean is taken of them.
    """
    evaluations = [row for row in rows if "eval_loss" in row]
    steps = [row for row in rows if "loss" in row]
    earlier, last = steps[:-LAST], steps[-LAST:]
    return [*_thinned(earlier, "loss"), *last, *_thinned(evaluations, "eval_loss")]


def _thinned(rows: Sequence[Row], name: str) -> list[Row]:
    if len(rows) <= _MOST_ROWS:
        return list(rows)
    stretch = -(-len(rows) // (_MOST_ROWS // 2))
    kept: list[Row] = []
    for start in range(0, len(rows), stretch):
        part = rows[start : start + stretch]
        by_value = sorted(range(len(part)), key=lambda place: part[place][name])
        kept += [part[place] for place in sorted({by_value[0], by_value[-1]})]
    return kept


def newest(views: Sequence[View]) -> list[View]:
    """The jobs that a page has room for, in the order of submission."""
    last = {view["id"]: place for place, view in enumerate(views)}
    by_weight = sorted(views, key=lambda view: (view["state"] not in LIVE_STATES, -last[view["id"]]))
    return sorted(by_weight[:MOST_JOBS], key=lambda view: last[view["id"]])


def is_output_folder(ref: str) -> bool:
    """Whether a path is the output folder of a job."""
    return (Path(ref).expanduser() / file_names.JOB).is_file()


def of_folders(folders: Sequence[str]) -> Contents:
    """What output folders tell by themselves: no reasons, and not who trained where.

    Raises:
        LorayError: One is no output folder, or its job file cannot be read.
    """
    jobs, rows = [], {}
    for folder in folders:
        path = Path(folder).expanduser().absolute()
        if not is_output_folder(folder):
            raise LorayError(
                f"{folder} is no output folder ({file_names.JOB} would be there), and no cluster runs that knows "
                "such a job; give output folders, or start the cluster with `loray serve`"
            )
        (spec,) = load_jobs([path / file_names.JOB])
        found = essential(read_metrics(str(path)))
        rows[str(path)] = found
        jobs.append(_view(str(path), spec.model_dump(mode="json"), found))
    return Contents(f"{len(jobs)} output folders" if len(jobs) > 1 else jobs[0]["name"], jobs, rows)


def _view(folder: str, spec: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """A job as its folder shows it: finished or not, more is not known."""
    steps = [row for row in rows if "loss" in row]
    done = (Path(folder) / file_names.ADAPTER_WEIGHTS).is_file()
    return {
        "id": folder,
        "name": spec["name"],
        "state": "SUCCEEDED" if done else "UNFINISHED",
        "spec": spec,
        "step": steps[-1]["step"] if steps else 0,
        "total_steps": steps[-1]["step"] if steps and done else spec["training"]["max_steps"] or 0,
        "submitted_at": rows[0]["time"] if rows else None,
        "started_at": rows[0]["time"] if rows else None,
        "finished_at": rows[-1]["time"] if rows else None,
        "reason": "",
        "waiting_for": "",
        "output_dir": folder,
    }
