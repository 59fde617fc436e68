"""What a job needs, as the scheduler's view of it says."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpu_actor.adapters.shapes import adapter_activation_bytes, adapter_bytes, copy_bytes
from gpu_actor.contract import footprint
from gpu_actor.contract.config import TrainingConfig
from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.footprint import MICRO_BATCH_CAP
from orchestrator.jobs.job import JobSpec
from orchestrator.knowledge.data_size import DataSize
from orchestrator.scheduler.estimate import device_kind
from orchestrator.scheduler.halving import expected_steps
from orchestrator.scheduler.view import UNKNOWN_STEPS, JobSize, JobView

_UNKNOWN_SHARE = 0.5  # of cutoff_len, for samples that nobody has counted


@dataclass(frozen=True)
class AdapterNeed:
    """What an adapter takes of an actor's memory: a matter of its settings, its base model and the kind of device.

    Attributes:
        bytes: Weights, gradients, moments, and what it keeps frozen.
        token_bytes: Of a kind of device, what its own part of the layers keeps of each token for the backward.
        copies: Bytes of copies that a GPU makes of it for a shared batch.
    """

    bytes: int
    token_bytes: Mapping[str, int]
    copies: int

    @classmethod
    def of(cls, spec: JobSpec, base: BaseDescription) -> AdapterNeed:
        """Walks through all layers of the base model, which takes a while.

        Raises:
            LorayError: The adapter does not go with the base model.
        """
        kept = {kind: adapter_activation_bytes(base, spec.lora, 1, kind) for kind in MICRO_BATCH_CAP}
        return cls(adapter_bytes(base, spec.lora), kept, copy_bytes(base, spec.lora))

    def size(self, kind: str, tokens: int) -> int:
        """Bytes on a kind of device with so many tokens in a micro-batch."""
        return self.bytes + (self.copies if kind == "cuda" else 0) + self.token_bytes[kind] * tokens


def scheduling_view(
    job_id: str,
    spec: JobSpec,
    base: BaseDescription,
    progress: Mapping[str, Any] | None = None,
    size: DataSize | None = None,
    *,
    devices: Collection[str] = (),
    need: AdapterNeed | None = None,
) -> JobView:
    """A queued job as the scheduler sees it.

    Args:
        job_id: Its id.
        spec: What it is.
        base: Its base model.
        progress: Counters of its reports, if it has trained.
        size: What its data file looks like.
        devices: Of the places where it may run; it has a size for each whose micro-batches have a cap of their own.
            None: any that there is.
        need: `AdapterNeed.of` of the job, if it is at hand.

    Raises:
        LorayError: Its adapter does not go with the base model.
    """
    progress = progress or {}
    need = need or AdapterNeed.of(spec, base)
    training = spec.training
    sizes = {
        device: _size_on(device, training, need, progress.get("longest") or None)
        for device in sorted({*devices} or MICRO_BATCH_CAP)
    }
    largest = max(sizes.values(), key=lambda size: size.worst_tokens)
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
        adapter_bytes=largest.bytes,
        worst_tokens=largest.worst_tokens,
        sizes=sizes if len({*sizes.values()}) > 1 else {},
        steps_left=max(1, total - progress.get("step", 0)),
        steps_total=total,
        tokens_per_step=(progress.get("tokens_per_step") or samples * mean) * footprint.token_work(training),
    )


def before_its_rungs(job: JobView, spec: JobSpec) -> JobView:
    """The job with the steps that it still makes on average: one of a halved grid may stop at each rung."""
    rules, total = spec.early_stop, job.steps_total or job.steps_left
    if not (rules.halving_steps and rules.group):
        return job
    expected = expected_steps(total - job.steps_left, total, rules.halving_steps, rules.halving_keep)
    return replace(job, steps_left=max(1, math.ceil(expected)))


def _size_on(device: str, training: TrainingConfig, need: AdapterNeed, longest: int | None) -> JobSize:
    """What a job takes of a place with such a device."""
    kind = device_kind(device)
    worst = footprint.worst_micro_batch_tokens(training, MICRO_BATCH_CAP[kind], longest)
    return JobSize(need.size(kind, worst), worst)


def _guess_steps(spec: JobSpec, size: DataSize | None) -> int:
    if spec.training.max_steps is not None:
        return spec.training.max_steps
    return spec.training.total_steps(size.samples) if size else UNKNOWN_STEPS
