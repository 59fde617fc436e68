"""A workload and a device for the simulator: the trace (CSV) and the profile (YAML) and what follows from both."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError

from gpu_actor.contract.config import EarlyStopConfig
from gpu_actor.contract.errors import InvalidJobError
from gpu_actor.contract.strict import Strict
from orchestrator.scheduler.view import MemoryModel, SpeedModel
from orchestrator.validation.field_index import dotted
from orchestrator.validation.problems import Problem, ProblemsError, explain
from orchestrator.validation.yaml_file import read_document

_COLUMNS = ("job", "arrival_s", "steps", "tokens_per_step", "adapter_bytes", "base_model", "priority", "grid")
_OPTIONAL = ("priority", "grid")
_Kind = TypeVar("_Kind", bound=Strict)
_MOST_JOBS = 1_000_000


class TraceError(ProblemsError, InvalidJobError):
    """A trace or a profile that cannot be used; its text has one line for each problem."""


class TraceJob(Strict):
    """One row of a trace.

    Attributes:
        adapter_bytes: Weights, gradients and moments.
    """

    job: str = Field(min_length=1, description="Its name, unique in the trace.")
    arrival_s: float = Field(ge=0, description="When it is submitted, in seconds from the start.")
    steps: int = Field(ge=1, description="Optimizer steps.")
    tokens_per_step: float = Field(gt=0, description="Real tokens of one optimizer step.")
    adapter_bytes: int = Field(ge=0, description="Bytes of its weights, gradients and moments.")
    base_model: str = Field(min_length=1, description="The base model it adapts.")
    priority: int = Field(
        default=0,
        ge=-100,
        le=100,
        description="Its class; each step up to 10 doubles its weight, and down to -10 halves it.",
    )
    grid: str | None = Field(default=None, min_length=1, description="The grid that it is a job of.")


class Profile(Strict):
    """How fast a device is with its base model, and how much memory that takes."""

    name: str = Field(min_length=1, description="What it is called.")
    step_seconds: float = Field(gt=0, description="Fixed seconds of a shared step.")
    token_seconds: float = Field(gt=0, description="Seconds per token.")
    adapter_seconds: float = Field(ge=0, description="Seconds per adapter in a step.")
    memory_bytes: int = Field(gt=0, description="Bytes of the device.")
    base_bytes: int = Field(ge=0, description="Bytes of the base model.")
    reserve_bytes: int = Field(ge=0, description="Bytes that are never given to a job.")
    activation_bytes_per_token: float = Field(ge=0, description="Bytes of activations per token of a micro-batch.")
    microbatch_tokens: int = Field(gt=0, description="Most tokens of one micro-batch.")
    swap_seconds: float = Field(default=2.0, ge=0, description="To go on with an adapter from its checkpoint.")
    base_load_seconds: float = Field(default=120.0, ge=0, description="To load a base model.")

    @property
    def speed(self) -> SpeedModel:
        """As the scheduler sees it."""
        return SpeedModel(self.step_seconds, self.token_seconds, self.adapter_seconds)

    @property
    def memory(self) -> MemoryModel:
        """As the scheduler sees it: every adapter brings its own activations."""
        return MemoryModel(self.base_bytes + self.reserve_bytes, self.activation_bytes_per_token)


@dataclass(frozen=True)
class Work:
    """What a job of a trace needs on the device of a profile.

    Attributes:
        added: v, the seconds that one step adds to a shared step.
        alone: Seconds of the whole job on an actor of its own.
        worst_tokens: Tokens of one of its micro-batches.
        bytes: Of its adapter and its activations.
    """

    added: float
    alone: float
    worst_tokens: float
    bytes: float


def work_of(job: TraceJob, profile: Profile) -> Work:
    """What a job needs; the formulas of the trace format."""
    added = profile.speed.added(job.tokens_per_step, profile.microbatch_tokens)
    worst = job.tokens_per_step / math.ceil(job.tokens_per_step / profile.microbatch_tokens)
    return Work(
        added=added,
        alone=job.steps * (profile.step_seconds + added),
        worst_tokens=worst,
        bytes=job.adapter_bytes + profile.activation_bytes_per_token * worst,
    )


def read_trace(path: Path) -> list[TraceJob]:
    """The jobs of a trace in the order of arrival.

    Raises:
        TraceError: With every problem of the file, up to a dozen.
    """
    source = str(path)
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:  # spreadsheets write a mark at the start
            reader = csv.DictReader(file)
            rows, header = list(reader), reader.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError([Problem(source, "", f"cannot be read as CSV: {error}; give a file with a header")]) from None
    missing = [name for name in _COLUMNS if name not in (*header, *_OPTIONAL)]
    if missing or len(rows) > _MOST_JOBS:
        fault = f"lacks the column {', '.join(missing)}" if missing else f"has more than {_MOST_JOBS} rows"
        raise TraceError([Problem(source, "", f"{fault}; a trace has {','.join(_COLUMNS)}, one row per job")])
    problems: list[Problem] = []
    jobs: list[TraceJob] = []
    for number, row in enumerate(rows, start=2):
        if None in row:
            problems.append(Problem(f"{source}:{number}", "", f"has more fields than the header ({len(header)})"))
            continue
        try:
            jobs.append(
                TraceJob.model_validate({key: value for key, value in row.items() if value != ""}, strict=False)
            )
        except ValidationError as error:
            where = f"{source}:{number}"
            problems += [Problem(where, dotted(field), text) for field, text in explain(error, row, TraceJob)]
    names = [job.job for job in jobs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        problems.append(Problem(source, "job", f"{twice} is there twice; names are unique"))
    if problems:
        raise TraceError(problems[:12])
    return sorted(jobs, key=lambda job: job.arrival_s)


def write_trace(path: Path, jobs: Sequence[TraceJob]) -> None:
    """Write jobs as a trace."""
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows([getattr(job, name) for name in _COLUMNS] for job in jobs)


def read_profile(path: Path) -> Profile:
    """The profile of a device.

    Raises:
        TraceError: With every problem of the file.
    """
    return _read(path, Profile, "profile")


def read_rules(path: Path) -> EarlyStopConfig:
    """Rules of early stop, as a job has them under `early_stop`.

    Raises:
        TraceError: With every problem of the file.
    """
    return _read(path, EarlyStopConfig, "set of rules")


def _read(path: Path, kind: type[_Kind], words: str) -> _Kind:
    try:
        data, problems = read_document(Path(path))
    except ProblemsError as error:
        raise TraceError(error.problems) from None
    if isinstance(data, dict) and not problems:
        try:
            return kind.model_validate(data)
        except ValidationError as error:
            problems = [Problem(str(path), dotted(field), text) for field, text in explain(error, data, kind)]
    raise TraceError(problems or [Problem(str(path), "", f"is no {words}; give a mapping of fields")])
