"""Looks at the files that jobs name before anything starts: data, models, start adapters, output folders."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from gpu_actor.adapters.peft_config import lack_of_weights, unsupported
from gpu_actor.contract.config import DataSource, TrainingConfig, is_template_path
from gpu_actor.contract.errors import BaseModelError
from gpu_actor.data.readers.read_records import is_hub_dataset
from gpu_actor.paths import file_names
from gpu_actor.paths.locations import find_base, is_hub_id, loray_home, pickles_in, safetensors_in
from gpu_actor.paths.roots import outside
from gpu_actor.paths.urls import is_url, url_problem
from orchestrator.jobs.data_checks import dataset_problem, objective_problem, split_problem, template_problem
from orchestrator.jobs.job import JobSpec
from orchestrator.jobs.output_folder import holds_job_file
from orchestrator.validation.problems import Problem, show

_GGUF_MAGIC = b"GGUF"
_LARGEST_JSON = 64 * 2**20
_TRUE = {"1", "ON", "YES", "TRUE"}
_Problems = list[tuple[str, str]]
"""Field and message of what is wrong with one job."""


def check_files(jobs: Sequence[JobSpec], *, allow_pickle: bool = False, goes_on: bool = False) -> list[Problem]:
    """What keeps jobs from starting: missing or unusable files, taken output folders, doubles among the jobs.

    A problem that many jobs share is told once.

    Args:
        jobs: The jobs submitted together, their paths absolute.
        allow_pickle: Whether base models with pickled weights may be read, as the cluster file says.
        goes_on: Whether output folders with the job file of the very same job pass: it may be in the queue still.
    """
    checks = _Checks(allow_pickle)
    jobs_with: dict[tuple[str, str], list[str]] = {}
    for job in jobs:
        for problem in checks.of(job):
            if goes_on and problem[0] == "output_dir" and holds_job_file(job):
                continue
            jobs_with.setdefault(problem, []).append(job.name)
    problems = [Problem(_job_names(names), field, message) for (field, message), names in jobs_with.items()]
    return [*problems, *_doubled_names(jobs), *_crossing_outputs(jobs)]


def check_roots(jobs: Sequence[JobSpec], roots: Sequence[str], written: Sequence[str] | None = None) -> list[Problem]:
    """Which paths of the jobs may not be used.

    A path that many jobs share is told once; what is allowed, by the first problem.

    Args:
        jobs: The jobs; hub ids are no paths and pass.
        roots: As in `outside`.
        written: The same for where they write; None: the same folders.
    """
    jobs_with: dict[tuple[str, str], list[str]] = {}
    for job in jobs:
        for place in _paths(job):
            jobs_with.setdefault(place, []).append(job.name)
    problems: list[Problem] = []
    told: set[tuple[str, ...]] = set()
    for (field, value), names in jobs_with.items():
        of_field = tuple(roots if written is None or field != "output_dir" else written)
        if whole := outside(value, of_field):
            short = outside(value, of_field, list_roots=False)
            problems.append(Problem(_job_names(names), field, short if of_field in told else whole))
            if whole != short:
                told.add(of_field)
    return problems


class _Checks:
    """The checks of one submission; a file that many jobs share is looked at once."""

    def __init__(self, allow_pickle: bool) -> None:
        self._dataset = cache(_answering(dataset_problem))
        self._template = cache(_answering(template_problem))
        self._base_model = cache(_answering(partial(_base_model_problem, allow_pickle=allow_pickle)))
        self._adapter_config = cache(_read_adapter)
        self._output = cache(_answering(_output_problem))

    def of(self, job: JobSpec) -> _Problems:
        """What is wrong with one job by itself."""
        urls = [(field, message) for field, value in _paths(job) if (message := _url_problem(field, value))]
        if urls:
            return urls
        relative = [(field, value) for field, value in _paths(job) if not (is_url(value) or os.path.isabs(value))]
        if relative:
            return [(field, f"{show(value)} is not an absolute path; give it from '/' on") for field, value in relative]
        problems = [
            *(problem for where, data in _sources(job) for problem in self._of_data(where, data, job.training)),
            ("base_model", self._base_model(job.base_model)),
            ("output_dir", self._output(job.output_dir)),
        ]
        if job.lora.init_adapter is not None:
            config, problem = self._adapter_config(job.lora.init_adapter)
            problems.append(("lora.init_adapter", problem))
            if not problem and config["peft_type"] != job.lora.peft_type:
                there = f"the adapter in {job.lora.init_adapter} is {show(config['peft_type'])}"
                problems.append(("lora.peft_type", f"{show(job.lora.peft_type)} differs: {there}; give that one"))
            elif not problem and config["r"] != job.lora.r:
                there = f"the adapter in {job.lora.init_adapter} has rank {show(config['r'])}"
                remedy = "give that rank, or another lora.init_adapter"
                problems.append(("lora.r", f"{job.lora.r} differs: {there}; {remedy}"))
        if job.training.reference_adapter is not None:
            _, problem = self._adapter_config(job.training.reference_adapter)
            problems.append(("training.reference_adapter", problem))
        return [(field, problem) for field, problem in problems if problem]

    def _of_data(self, where: str, data: DataSource, training: TrainingConfig) -> _Problems:
        problems = [
            (f"{where}.path", self._dataset(data.path)),
            (where, split_problem(data)),
            (f"{where}.format", objective_problem(data, training)),
        ]
        if data.chat_template is not None and is_template_path(data.chat_template):
            problems.append((f"{where}.chat_template", self._template(data.chat_template)))
        return problems


def _sources(job: JobSpec) -> list[tuple[str, DataSource]]:
    """The data sets of a job, each with what a person calls it."""
    sources = job.dataset.sources
    return [("dataset" if len(sources) == 1 else f"dataset[{i}]", source) for i, source in enumerate(sources)]


def named_places(jobs: Sequence[JobSpec]) -> list[str]:
    """The files and folders that jobs name, for whoever wrote the jobs and may allow them."""
    return list(dict.fromkeys(value for job in jobs for _, value in _paths(job)))


def _paths(job: JobSpec) -> list[tuple[str, str]]:
    paths = [("output_dir", job.output_dir)]
    for where, data in reversed(_sources(job)):
        if not is_hub_dataset(data.path):
            paths.insert(0, (f"{where}.path", data.path))
        if data.chat_template is not None and is_template_path(data.chat_template):
            paths.append((f"{where}.chat_template", data.chat_template))
    if job.lora.init_adapter is not None:
        paths.append(("lora.init_adapter", job.lora.init_adapter))
    if job.training.reference_adapter is not None:
        paths.append(("training.reference_adapter", job.training.reference_adapter))
    if not is_hub_id(job.base_model):
        paths.append(("base_model", job.base_model))
    return paths


def _url_problem(field: str, value: str) -> str:
    """Why the URL in a field cannot be used; empty where it can, and for paths."""
    if not is_url(value):
        return ""
    problem = url_problem(value)
    if problem or field == "output_dir":
        return problem
    return f"{show(value)}: this is read from a file or folder; only output_dir may be in a bucket; download it"


def _answering(check: Callable[[str], str]) -> Callable[[str], str]:
    """A check whose failure to look is one of its answers."""

    def answer(value: str) -> str:
        try:
            return check(value)
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL
            return f"{show(value)} cannot be looked at: {_reason(error)}; check its permissions"

    return answer


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _base_model_problem(ref: str, allow_pickle: bool) -> str:
    try:
        files = find_base(ref)
    except BaseModelError as error:
        return str(error).removeprefix("base_model: ")
    if files.folder is not None and files.gguf_file is not None:
        return _gguf_problem(files.folder / files.gguf_file)
    if not is_hub_id(files.place):
        return _model_folder_problem(Path(files.place), allow_pickle)
    if not {os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")} & _TRUE:
        return ""
    from huggingface_hub import try_to_load_from_cache  # slow to import, and rarely needed

    cached = try_to_load_from_cache(files.place, files.gguf_file or "config.json")
    if isinstance(cached, str):
        file = Path(cached)
        return _gguf_problem(file) if files.gguf_file else _model_folder_problem(file.parent, allow_pickle)
    return (
        f"{show(ref)} is not in the local hub cache, and HF_HUB_OFFLINE forbids to fetch it; "
        f"run `hf download {files.place}` with a network, put the model into {loray_home() / 'models' / ref}, "
        "or give a folder"
    )


def _gguf_problem(file: Path) -> str:
    with file.open("rb") as stream:
        if stream.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC:
            return ""
    return f"{show(str(file))} is no GGUF file; fetch it again"


def _model_folder_problem(folder: Path, allow_pickle: bool) -> str:
    shown = show(str(folder))
    if not folder.exists():
        return f"{shown} does not exist; give the folder of a model, or a hub id (organisation/name)"
    if not folder.is_dir():
        return f"{shown} is a file; give the folder of a model"
    if not (folder / "config.json").is_file():
        if (folder / file_names.ADAPTER_CONFIG).is_file():
            return f"{shown} is an adapter, not a base model; give it as lora.init_adapter, and its base here"
        return f"{shown} is no model: it lacks config.json; give a folder as save_pretrained() writes it"
    _, problem = _read_mapping(folder / "config.json")
    return problem or _weights_problem(folder, allow_pickle)


def _weights_problem(folder: Path, allow_pickle: bool) -> str:
    shown = show(str(folder))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names, problem = _read_mapping(index)
        shards = names.get("weight_map")
        if not problem and not isinstance(shards, dict):
            return f"{show(str(index))} names no weights; fetch the model again"
        missing = sorted({str(name) for name in (shards or {}).values() if not (folder / str(name)).is_file()})
        if missing and not problem:
            return f"{shown} lacks {missing[0]}, which its index names; fetch the model again"
        return problem
    if safetensors_in(folder):
        return ""
    pickles = pickles_in(folder)
    if pickles and not allow_pickle:
        return (
            f"{shown} has pickled weights only ({pickles[0].name}), which can run code when read; convert "
            "them: load the model where you trust it and save_pretrained() writes safetensors; or the operator "
            "sets allow_pickle: true in the cluster file"
        )
    return "" if pickles else f"{shown} is no model: it lacks weights (*.safetensors); fetch the model again"


def _read_mapping(path: Path) -> tuple[dict[str, Any], str]:
    """A JSON object, or what is wrong with its file."""
    if path.stat().st_size > _LARGEST_JSON:
        return {}, f"{show(str(path))} is larger than {_LARGEST_JSON // 2**20} MiB; fetch or save it again"
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"{show(str(path))} cannot be read as JSON: {_reason(error)}; fetch or save it again"
    if not isinstance(value, dict):
        return {}, f"{show(str(path))} is not a JSON object; fetch or save it again"
    return value, ""


def _read_adapter(value: str) -> tuple[dict[str, Any], str]:
    """The configuration of a PEFT adapter, or what is wrong with its folder."""
    config: dict[str, Any] = {}

    def problem(value: str) -> str:
        folder, shown = Path(value), show(value)
        if not folder.is_dir():
            state = "is a file" if folder.exists() else "does not exist"
            return f"{shown} {state}; give the folder of a PEFT adapter"
        if not (folder / file_names.ADAPTER_CONFIG).is_file():
            return f"{shown} is no PEFT adapter: it lacks {file_names.ADAPTER_CONFIG}; give a folder that PEFT wrote"
        if lack := lack_of_weights(folder):
            return f"{shown} {lack}"
        settings, unreadable = _read_mapping(folder / file_names.ADAPTER_CONFIG)
        config.update(settings)
        if unreadable or not (reason := unsupported(settings)):
            return unreadable
        return f"{shown} {reason}"

    return config, _answering(problem)(value)


def _output_problem(value: str) -> str:
    if is_url(value):
        return ""  # the orchestrator looks: it may reach the bucket where its clients do not
    path, shown = Path(value), show(value)
    if path.is_dir():
        if next(path.iterdir(), None) is not None:
            return f"{shown} is not empty; choose another folder, or remove this one"
        nearest = path
    elif os.path.lexists(path):
        return f"{shown} is a file; choose the name of a new folder"
    else:
        nearest = next(parent for parent in path.parents if os.path.lexists(parent))
        if not nearest.is_dir():
            return f"{shown} lies below {show(str(nearest))}, which is no folder; choose another one"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"{shown} cannot be made: this user may not write to {show(str(nearest))}; choose another folder"
    return ""


def _doubled_names(jobs: Sequence[JobSpec]) -> list[Problem]:
    counts: dict[str, int] = {}
    for job in jobs:
        counts[job.name] = counts.get(job.name, 0) + 1
    return [
        Problem(f"job {name}", "name", f"{show(name)} is given to {count} of these jobs; give each its own name")
        for name, count in counts.items()
        if count > 1
    ]


def _crossing_outputs(jobs: Sequence[JobSpec]) -> list[Problem]:
    """Jobs whose output folder is that of another or lies inside it, links followed."""
    places = sorted(((Path(os.path.realpath(job.output_dir)).parts, number) for number, job in enumerate(jobs)))
    problems: list[Problem] = []
    above: list[tuple[tuple[str, ...], int]] = []  # in this order, a folder's ancestors are the last ones seen
    for parts, number in places:
        while above and parts[: len(above[-1][0])] != above[-1][0]:
            above.pop()
        if above:
            other, job = jobs[above[-1][1]], jobs[number]
            relation = "is also" if above[-1][0] == parts else "lies inside"
            message = f"{show(job.output_dir)} {relation} the output folder of job {other.name}"
            problems.append(Problem(f"job {job.name}", "output_dir", f"{message}; give each job its own"))
        above.append((parts, number))
    return problems


def _job_names(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"job {names[0]}"
    rest = len(names) - 1
    return f"job {names[0]} and {rest} other{'s' if rest > 1 else ''}"
