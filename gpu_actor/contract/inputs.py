"""The places that a job reads from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from gpu_actor.contract.config import DatasetConfig, DataSource, TrainingConfig, is_template_path
from gpu_actor.contract.lora_config import LoraConfig


class _Reads(Protocol):
    @property
    def dataset(self) -> DatasetConfig: ...
    @property
    def lora(self) -> LoraConfig: ...
    @property
    def training(self) -> TrainingConfig: ...
    def model_copy(self, *, update: dict[str, Any]) -> Any: ...


_Job = TypeVar("_Job", bound=_Reads)


def with_inputs(job: _Job, place: Callable[[str], str]) -> _Job:
    """A job that reads its data, chat templates and adapters from elsewhere; its base model stays.

    Args:
        job: The job.
        place: Says of each path, or hub id of a data set, where that is.
    """
    mix = [source.model_copy(update=_moved(source, place)) for source in job.dataset.mix]
    changes: dict[str, Any] = {"dataset": job.dataset.model_copy(update={**_moved(job.dataset, place), "mix": mix})}
    if job.lora.init_adapter is not None:
        changes["lora"] = job.lora.model_copy(update={"init_adapter": place(job.lora.init_adapter)})
    if job.training.reference_adapter is not None:
        reference = place(job.training.reference_adapter)
        changes["training"] = job.training.model_copy(update={"reference_adapter": reference})
    moved: _Job = job.model_copy(update=changes)
    return moved


def _moved(source: DataSource, place: Callable[[str], str]) -> dict[str, str]:
    data = {"path": place(source.path)}
    if source.chat_template is not None and is_template_path(source.chat_template):
        data["chat_template"] = place(source.chat_template)
    return data
