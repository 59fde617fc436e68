"""What a job needs, as the scheduler's view of it says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gpu_actor.adapters.shapes import adapter_activation_bytes, adapter_bytes
from gpu_actor.contract import footprint
from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.footprint import MICRO_BATCH_CAP
from orchestrator.jobs.job import JobSpec
from orchestrator.knowledge.data_size import DataSize
from orchestrator.scheduler.estimate import device_kind
from orchestrator.scheduler.view import UNKNOWN_STEPS, JobView

_UNKNOWN_SHARE = 0.5  # of cutoff_len, for samples that nobody has counted


@dataclass(frozen=True)
class AdapterNeed:
    """What an adapter takes of an actor's memory: a matter of its settings and its base model alone.

    Attributes:
        bytes: Weights, gradients, moments, and what it keeps frozen.
        token_bytes: What its own part of the layers keeps of each token for the backward.
    """

    bytes: int
    token_bytes: int

    @classmethod
    def of(cls, spec: JobSpec, base: BaseDescription, kind: str = "cpu") -> AdapterNeed:
        """Walks through all layers of the base model, which takes a while.

        Args:
            spec: The job.
            base: Its base model.
            kind: Of the devices that it may run on (`kind_of_all`).

        Raises:
            LorayError: The adapter does not go with the base model.
        """
        return cls(adapter_bytes(base, spec.lora, kind), adapter_activation_bytes(base, spec.lora, 1, kind))


def micro_batch_cap(devices: Iterable[str]) -> int:
    """Most tokens of a micro-batch on the roomiest of some devices; without any, on any device there is."""
    return max((MICRO_BATCH_CAP[device_kind(device)] for device in devices), default=max(MICRO_BATCH_CAP.values()))


def kind_of_all(devices: Iterable[str]) -> str:
    """`cuda` where all of some devices are GPUs, which keep no masks of dropout; else `cpu`."""
    return "cuda" if {device_kind(device) for device in devices} == {"cuda"} else "cpu"


def scheduling_view(
    job_id: str,
    spec: JobSpec,
    base: BaseDescription,
    progress: Mapping[str, Any] | None = None,
    size: DataSize | None = None,
    *,
    cap: int | None = None,
    kind: str = "cpu",
    need: AdapterNeed | None = None,
) -> JobView:
    """A queued job as the scheduler sees it.

    Args:
        job_id: Its id.
        spec: What it is.
        base: Its base model.
        progress: Counters of its reports, if it has trained.
        size: What its data file looks like.
        cap: Most tokens of a micro-batch where it may run (`micro_batch_cap`); None: on any device there is.
        kind: Of the devices that it may run on (`kind_of_all`).
        need: `AdapterNeed.of` of the job, if it is at hand.

    Raises:
        LorayError: Its adapter does not go with the base model.
    """
    progress = progress or {}
    need = need or AdapterNeed.of(spec, base, kind)
    training = spec.training
    longest = progress.get("longest") or None
    worst = footprint.worst_micro_batch_tokens(training, cap or micro_batch_cap(()), longest)
    samples = training.per_device_train_batch_size * training.gradient_accumulation_steps
    if size is not None:
        samples = min(samples, size.samples)
    mean = min(size.mean_tokens, training.cutoff_len) if size else training.cutoff_len * _UNKNOWN_SHARE
    total = progress.get("total_steps") or _guess_steps(spec, size)
    return JobView(
        id=job_id,
        base_model=spec.base_model,
        priority=spec.queue.priority,
        arrival=0,
        adapter_bytes=need.bytes + need.token_bytes * worst,
        worst_tokens=worst,
        steps_left=max(1, total - progress.get("step", 0)),
        steps_total=total,
        tokens_per_step=(progress.get("tokens_per_step") or samples * mean) * footprint.token_work(training),
    )


def _guess_steps(spec: JobSpec, size: DataSize | None) -> int:
    if spec.training.max_steps is not None:
        return spec.training.max_steps
    return spec.training.total_steps(size.samples) if size else UNKNOWN_STEPS
