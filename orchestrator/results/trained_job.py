"""Where the adapter of a job lies, by the job's name or id, or by its output folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpu_actor.contract.errors import AdapterError, ClusterUnavailableError
from gpu_actor.paths import file_names
from gpu_actor.paths.urls import is_url, without_file_scheme
from gpu_actor.storage.remote_folder import RemoteFolder
from orchestrator.jobs.job_file import load_jobs

Call = Callable[..., Any]
"""Calls a method of the orchestrator by name."""
_MARKS = (file_names.JOB, file_names.ADAPTER_CONFIG)


@dataclass(frozen=True)
class TrainedJob:
    """A job, or an adapter of PEFT, as its output folder has it.

    Attributes:
        name: Of the job; of an adapter without one the folder, as it was given.
        base_model: As the job names it.
        folder: The output folder.
        job_id: Of a job that the orchestrator knows.
        total_steps: Of the job, if known.
        settings: The job's settings; empty for an adapter of PEFT.
    """

    name: str
    base_model: str
    folder: str
    job_id: str | None = None
    total_steps: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def chat_template(self) -> str | None:
        """As in `DatasetConfig`."""
        template: str | None = self.settings.get("dataset", {}).get("chat_template")
        return template


def find_result(ref: str, call: Call | None) -> TrainedJob:
    """The job that is meant.

    Args:
        ref: A name or an id, or an output folder, which may be in a bucket.
        call: Reaches the orchestrator; None: there is none, so output folders alone are found.

    Raises:
        LorayError: It is neither an output folder nor known to the orchestrator.
    """
    place = without_file_scheme(ref)
    if is_url(place):
        return _of_bucket(place)
    folder = Path(place).expanduser().absolute()
    if any((folder / name).is_file() for name in _MARKS):
        return _of_folder(ref, folder)
    if call is None:
        raise ClusterUnavailableError(
            f"{ref} is no output folder ({' or '.join(_MARKS)} would be there), and no cluster runs that knows such a "
            "job; give the job's output folder, or start the cluster with `loray serve`"
        )
    view = call("get_job", ref, again=True)
    return TrainedJob(
        name=view["name"],
        base_model=view["spec"]["base_model"],
        folder=view["output_dir"],
        job_id=view["id"],
        total_steps=view["total_steps"] or None,
        settings=view["spec"],
    )


def _of_bucket(url: str) -> TrainedJob:
    remote = RemoteFolder(url)
    with tempfile.TemporaryDirectory() as copy:
        for name in _MARKS:
            content = remote.read(name)
            if content is not None:
                (Path(copy) / name).write_bytes(content)
                return replace(_of_folder(url, Path(copy)), folder=url)
    raise AdapterError(f"{url} is no output folder: it has neither {' nor '.join(_MARKS)}")


def _of_folder(ref: str, folder: Path) -> TrainedJob:
    if (folder / file_names.JOB).is_file():
        (spec,) = load_jobs([folder / file_names.JOB])
        return TrainedJob(spec.name, spec.base_model, str(folder), settings=spec.model_dump(mode="json"))
    try:
        base = json.loads((folder / file_names.ADAPTER_CONFIG).read_text("utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{folder / file_names.ADAPTER_CONFIG}: damaged ({error})") from None
    return TrainedJob(ref, str(base), str(folder))
