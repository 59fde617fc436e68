"""From job files to jobs: one job, or `defaults` and `jobs`; grids expanded, paths made absolute.

Every problem of every file is found before anything is refused.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from gpu_actor.contract.config import is_template_path
from gpu_actor.data.readers.read_records import is_hub_dataset
from gpu_actor.paths.locations import is_local_model, looks_like_path
from gpu_actor.paths.urls import is_url, without_file_scheme
from orchestrator.jobs.grid import Axis, Settings, combinations, read_axes, size
from orchestrator.jobs.job import MAX_NAME, JobFileError, JobSpec
from orchestrator.validation.field_index import FieldIndex, FieldPath, dotted, field_index
from orchestrator.validation.problems import Problem, ProblemsError, explain, show, unknown_field_hint
from orchestrator.validation.yaml_file import read_document

MAX_JOBS = 10_000
"""Most jobs that one file may make."""

_PATHS = (
    ("dataset", "path"),
    ("dataset", "chat_template"),
    ("lora", "init_adapter"),
    ("training", "reference_adapter"),
    ("output_dir",),
    ("base_model",),
)
_FORMS = "a single job with its fields, or `jobs` (a list) with or without `defaults`"


class _JobFields(JobSpec):
    """All names that may stand at the top of a job file, for suggestions."""

    grid: dict[str, Any] | None = Field(default=None, description="Dotted field to a list of values.")
    jobs: list[dict[str, Any]] | None = Field(default=None, description="Several jobs.")
    defaults: dict[str, Any] | None = Field(default=None, description="What several jobs share.")


def load_jobs(paths: Sequence[Path]) -> list[JobSpec]:
    """The jobs of some files, in order.

    Args:
        paths: Job files in YAML, or in JSON when the name ends in `.json`.

    Raises:
        JobFileError: With every problem of every file.
    """
    jobs: list[JobSpec] = []
    problems: list[Problem] = []
    for path in map(Path, paths):
        try:
            data, doubled_keys = read_document(path)
            problems += doubled_keys
            jobs += jobs_from_mapping(data, str(path), path.parent)
        except ProblemsError as error:
            problems += error.problems
    if problems:
        raise JobFileError(problems)
    return jobs


def jobs_from_mapping(data: Mapping[str, Any], source: str, folder: Path) -> list[JobSpec]:
    """The jobs of one document.

    Args:
        data: A single job, or `defaults` and `jobs`; each job may hold a grid.
        source: What to call the document in messages.
        folder: Where its relative paths start.

    Raises:
        JobFileError: With every problem of the document.
    """
    if not isinstance(data, Mapping):
        raise JobFileError([Problem(source, "", f"{show(data)} is not a job file; allowed: {_FORMS}")])
    entries, problems = _entries(data)
    base = Path(os.path.abspath(folder))
    plans = [_Plan(entry, base) for entry in entries]
    for plan in plans:
        plan.check()
        problems += [(plan.entry.origin(path), message) for path, message in plan.problems]
    total = sum(size(plan.axes) for plan in plans)
    if total > MAX_JOBS:
        where = plans[0].entry.origin(("grid",)) if len(plans) == 1 else "jobs"
        problems.append((where, f"makes {total:,} jobs; allowed: up to {MAX_JOBS:,} in a file; give fewer values"))
    jobs: list[JobSpec] = []
    if not problems:
        for plan in plans:
            jobs += plan.jobs()
            problems += [(plan.entry.origin(path), message) for path, message in plan.problems]
    if problems:
        raise JobFileError([Problem(source, name, message) for name, message in dict.fromkeys(problems)])
    return jobs


@dataclass(frozen=True)
class _Entry:
    """One job as written: its own fields over the defaults of its file."""

    where: str
    fields: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def merged(self) -> dict[str, Any]:
        return _merge(self.defaults, self.fields)

    def origin(self, path: FieldPath) -> str:
        """The name of a field at the place in the file that it comes from."""
        in_defaults = _reaches(self.defaults, path) and not _reaches(self.fields, path)
        where = "defaults" if in_defaults else self.where
        return ".".join(filter(None, (where, dotted(path))))


def _entries(data: Mapping[str, Any]) -> tuple[list[_Entry], list[tuple[str, str]]]:
    """The jobs of a document, and what is wrong with the frame around them."""
    if "jobs" not in data and "defaults" not in data:
        return [_Entry("", data)], []
    problems: list[tuple[str, str]] = []
    index = field_index(JobSpec)
    for key in data:
        if key not in ("jobs", "defaults"):
            frame = difflib.get_close_matches(str(key)[:20], ("defaults", "jobs"), n=1)
            hint = f"did you mean {frame[0]}?" if frame else _hint_for_defaults((str(key),), index)
            problems.append((dotted((str(key),)), f"is not a field beside `jobs` and `defaults`; {hint}"))
    defaults, jobs = data.get("defaults", {}), data.get("jobs")
    if not isinstance(defaults, Mapping):
        problems.append(("defaults", f"{show(defaults)} is not a mapping of fields; give fields or leave it out"))
        defaults = {}
    if not isinstance(jobs, list) or not jobs:
        value = "is missing" if "jobs" not in data else f"{show(jobs)} is not a list of jobs"
        problems.append(("jobs", f"{value}; give at least one job, each a mapping of fields"))
        return [], problems
    entries = []
    for number, job in enumerate(jobs):
        if isinstance(job, Mapping):
            entries.append(_Entry(f"jobs[{number}]", job, defaults))
        else:
            problems.append((f"jobs[{number}]", f"{show(job)} is not a job; give a mapping of fields"))
    return entries, problems


def _hint_for_defaults(path: FieldPath, index: FieldIndex) -> str:
    """What to do about a field of a job that stands beside `jobs` and `defaults`."""
    hint = unknown_field_hint(path, index, "job")
    if hint is None:
        return "the fields here are defaults, jobs"
    return hint.replace("did you mean ", "did you mean defaults.", 1)


class _Plan:
    """One entry on its way to jobs: first checked value by value, then combined."""

    def __init__(self, entry: _Entry, folder: Path) -> None:
        self.entry = entry
        self.problems: list[tuple[FieldPath, str]] = []
        self.axes: list[Axis] = []
        self._folder = folder
        self._fields = entry.merged()
        self._is_list = isinstance(self._fields.get("dataset"), list)
        if self._is_list:
            self._fields["dataset"] = _as_mix(self._fields["dataset"])
        grid = self._fields.pop("grid", None)
        if grid is not None:
            self.axes, problems = read_axes(grid, field_index(JobSpec))
            self.problems = [(("grid", *path), message) for path, message in problems]

    def check(self) -> None:
        """Looks at each value of the grid by itself, so that the work is a sum and not a product."""
        first: Settings = [(axis.path, axis.values[0]) for axis in self.axes]
        varied = {axis.path for axis in self.axes}
        for path, message in self._read(first)[1]:
            if not any(path[: len(axis)] == axis for axis in varied):
                self.problems.append((path, message))
        for axis in self.axes:
            for value in axis.values:
                for path, message in self._read([*first, (axis.path, value)])[1]:
                    # What a combination as a whole violates is found when all are made.
                    if path[: len(axis.path)] == axis.path:
                        self.problems.append((("grid", dotted(axis.path)), message))

    def jobs(self) -> list[JobSpec]:
        """Every combination as a job; what is wrong with one goes to the problems."""
        name, output_dir = self._fields["name"], self._fields["output_dir"]
        longest = MAX_NAME - len(name) - 1
        jobs: list[JobSpec] = []
        if self.axes and longest < len(str(size(self.axes))):
            message = f"{show(name)} has {len(name)} characters and leaves no room for the suffixes of a grid"
            self.problems.append((("name",), f"{message}; shorten it"))
            return []
        for suffix, settings in combinations(self.axes, longest) if self.axes else [("", [])]:
            identity: list[tuple[tuple[str, ...], Any]] = []
            if suffix:
                identity = [(("name",), f"{name}-{suffix}"), (("output_dir",), os.path.join(output_dir, suffix))]
            job, problems = self._read([*settings, *identity])
            self.problems += problems
            if job:
                jobs.append(job)
        return jobs

    def _with_group(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """The jobs of a grid that is halved are compared with each other."""
        early = fields.get("early_stop")
        if not isinstance(early, Mapping) or early.get("halving_steps") is None or early.get("group") is not None:
            return fields
        return _with(fields, ("early_stop", "group"), self._fields.get("name"))

    def _read(self, settings: Settings) -> tuple[JobSpec | None, list[tuple[FieldPath, str]]]:
        fields: Mapping[str, Any] = self._fields
        for path, value in settings:
            fields = _with(fields, path, value)
        fields = _with_absolute_paths(self._with_group(fields) if self.axes else fields, self._folder)
        try:
            return JobSpec.model_validate(fields), []
        except ValidationError as error:
            found = explain(error, fields, _JobFields, "job")
            return None, [(_in_list(path), message) for path, message in found] if self._is_list else found


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _reaches(fields: Any, path: FieldPath) -> bool:
    for part in path:
        is_item = isinstance(fields, list) and isinstance(part, int)
        if not is_item and not (isinstance(fields, Mapping) and part in fields):
            return False
        fields = fields[part]
    return True


def _with(fields: Mapping[str, Any], path: tuple[str, ...], value: Any) -> Mapping[str, Any]:
    """The fields with one set; a section that is no mapping stays, for its own error."""
    head, *rest = path
    if rest:
        section = fields.get(head, {})
        if not isinstance(section, Mapping):
            return fields
        value = _with(section, tuple(rest), value)
    return {**fields, head: value}


def _as_mix(sources: list[Any]) -> Any:
    """A list of data sets as the first of them with the others as its mix; anything else stays, for its own error."""
    if sources and all(isinstance(source, Mapping) for source in sources) and "mix" not in sources[0]:
        return {**sources[0], "mix": sources[1:]}
    return sources


def _in_list(path: FieldPath) -> FieldPath:
    """Where a field of such a mix stands in the list."""
    match path:
        case ("dataset", "mix", int(number), *rest):
            return ("dataset", number + 1, *rest)
        case ("dataset", str(name), *rest) if name != "mix":
            return ("dataset", 0, name, *rest)
    return path


def _with_absolute_paths(fields: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    for path in _PATHS:
        value: Any = fields
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        if (absolute := _absolute(path, value, folder)) is not None:
            fields = _with(fields, path, absolute)
    data = fields.get("dataset")
    mix = data.get("mix") if isinstance(data, Mapping) else None
    if isinstance(mix, list):
        moved = [_source_with_absolute_paths(source, folder) for source in mix]
        fields = _with(fields, ("dataset", "mix"), moved)
    return fields


def _source_with_absolute_paths(source: Any, folder: Path) -> Any:
    if not isinstance(source, Mapping):
        return source
    found = {name: _absolute(("dataset", name), source.get(name), folder) for name in ("path", "chat_template")}
    return {**source, **{name: path for name, path in found.items() if path is not None}}


def _absolute(path: tuple[str, ...], value: Any, folder: Path) -> str | None:
    """The absolute path that a field means; None where it is no path, or leads to the hub."""
    if not isinstance(value, str | Path) or not str(value):
        return None
    if path == ("dataset", "chat_template") and not is_template_path(str(value)):
        return None  # the template itself
    place = without_file_scheme(str(value))
    if is_url(place):
        return place
    absolute = os.path.abspath(folder / os.path.expanduser(place))
    if path == ("base_model",) and not looks_like_path(place) and not is_local_model(absolute):
        return None  # a hub id
    if path == ("dataset", "path") and is_hub_dataset(place) and not os.path.exists(absolute):
        return None
    return absolute
