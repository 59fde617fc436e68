"""Which settings tell jobs apart, what came of each job, and which one did best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.formatting import View
from orchestrator.report.contents import LAST, Contents, Row

_OWN = ("name", "output_dir", "queue.priority", "queue.max_retries", "early_stop.group", "report_to")
_ALIKE = ("base_model", "dataset.path", "dataset.val_size", "training.objective", "training.seed")


@dataclass(frozen=True)
class Result:
    """What came of a job.

    Attributes:
        loss: Mean training loss of its last rows.
        eval_loss: Of its adapter: at its last evaluation, or with `early_stop.patience` the lowest.
        best: Whether no other of the jobs that can be compared with it did better.
    """

    loss: float | None
    eval_loss: float | None
    best: bool = False


def differing_settings(jobs: Sequence[View]) -> list[str]:
    """The settings that not all jobs share, by dotted name, in the order of a job file."""
    flat = [settings(job) for job in jobs]
    names = dict.fromkeys(name for one in flat for name in one)
    return [name for name in names if name not in _OWN and len({repr(one.get(name)) for one in flat}) > 1]


def settings(job: View) -> dict[str, Any]:
    """The settings of a job by dotted name; none where they are not for the reader's eyes."""
    return _flat(job["spec"] or {}, "")


def _flat(value: Mapping[str, Any], section: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, inner in value.items():
        path = f"{section}.{name}" if section else name
        found |= _flat(inner, path) if isinstance(inner, Mapping) else {path: inner}
    return found


def results(contents: Contents) -> dict[str, Result]:
    """What came of every job, by id.

    Losses compare where base model, data, split, objective and seed are the same: among two or more of such jobs the
    one with the lowest evaluation loss is the best, and without evaluations the one with the lowest training loss.
    """
    found = {
        job["id"]: _result(
            contents.rows.get(job["id"], ()), keeps_best=settings(job).get("early_stop.patience") is not None
        )
        for job in contents.jobs
    }
    groups: dict[str, list[str]] = {}
    for job in contents.jobs:
        flat = settings(job)
        groups.setdefault(repr([flat.get(name) for name in _ALIKE]), []).append(job["id"])
    for ids in groups.values():
        by_loss = [(value, job_id) for job_id in ids if (value := _decisive(found, ids, job_id)) is not None]
        if len(by_loss) > 1:
            _, best = min(by_loss)
            found[best] = Result(found[best].loss, found[best].eval_loss, best=True)
    return found


def _decisive(found: Mapping[str, Result], ids: Sequence[str], job_id: str) -> float | None:
    """The loss by which a job is compared: by evaluation, if any of the group has one."""
    if any(found[other].eval_loss is not None for other in ids):
        return found[job_id].eval_loss
    return found[job_id].loss


def _result(rows: Sequence[Row], *, keeps_best: bool) -> Result:
    losses = numbers(rows, "loss")[-LAST:]
    evaluations = [value for _, value in numbers(rows, "eval_loss")]
    mean = math.fsum(value for _, value in losses) / len(losses) if losses else None
    return Result(mean, min(evaluations, default=None) if keeps_best else next(reversed(evaluations), None))


def numbers(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    """Step and value of the rows that have this number, and have it finite."""
    return [
        (row["step"], float(row[name]))
        for row in rows
        if isinstance(row.get(name), int | float) and math.isfinite(row[name])
    ]
