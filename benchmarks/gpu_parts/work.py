"""Jobs of random tokens, and Loray's engine that trains them: what its actor runs, without Ray."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_actor.contract.config import AdapterSpec, DatasetConfig, TrainingConfig
from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.footprint import DEFAULT_TOKEN_BUDGET, first_token_budget
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.contract.report import TenantState
from gpu_actor.data.dataset import load_dataset
from gpu_actor.device.memory import MemoryMeter, memory_limit
from gpu_actor.model.base_model import BaseModel
from gpu_actor.model.count_activations import count_in
from gpu_actor.training.tenant import Tenant
from gpu_actor.training.trainer import CoTrainer

from .setting import Setting

RATE = 1e-3


@dataclass(frozen=True)
class Job:
    """One LoRA job on all linear layers.

    Attributes:
        name: Of the job; it is also the seed of its tokens.
        steps: Sample lengths of each optimizer step.
        rank: Of the adapter.
        dropout: Of its inputs.
    """

    name: str
    steps: tuple[tuple[int, ...], ...]
    rank: int = 16
    dropout: float = 0.0

    @property
    def tokens(self) -> int:
        """Real tokens of all steps."""
        return sum(sum(step) for step in self.steps)

    def samples(self, vocabulary: int) -> list[list[list[int]]]:
        """Token ids of each step's samples; all but the first of a sample are learned."""
        random = np.random.default_rng([7, *self.name.encode()])
        words = random.integers(3, vocabulary, 64)  # few, so that there is something to learn
        return [[random.choice(words, length).tolist() for length in step] for step in self.steps]


def lora(job: Job) -> LoraConfig:
    """The adapter of a job."""
    return LoraConfig(r=job.rank, lora_alpha=2 * job.rank, lora_dropout=job.dropout, target_modules="all-linear")


def same_steps(lengths: Sequence[int], count: int) -> tuple[tuple[int, ...], ...]:
    """`count` steps of samples of the same lengths."""
    return (tuple(lengths),) * count


def mixed_steps(seed: int, samples: int, count: int, longest: int) -> tuple[tuple[int, ...], ...]:
    """Steps of log-normal lengths, each length another one."""
    random = np.random.default_rng(seed)
    drawn = np.exp(random.normal(math.log(longest / 4), 0.7, (count, samples)))
    return tuple(tuple(int(length) for length in np.clip(step, 8, longest)) for step in drawn)


class Engine:
    """Loray's engine on one model, which is hooked in place.

    Attributes:
        base: The hooked model.
    """

    def __init__(self, setting: Setting, model: Any, folder: Path) -> None:
        """Serve the model as an actor does."""
        self.setting = setting
        self._config = copy.deepcopy(model.config)  # as nobody has hooked it
        self.base = BaseModel.serve("random", model)
        self.vocabulary = int(model.config.vocab_size)
        self._folder = folder
        self._count = 0

    @cached_property
    def described(self) -> BaseDescription:
        """The base with what its forward keeps in its own number format."""
        counted = count_in(self.base.dtype, self._config)
        return replace(self.base.description, activations=counted and replace(counted, half=counted))

    @cached_property
    def budget(self) -> int:
        """The token budget that an actor of this device would begin with."""
        if not self.setting.on_cuda:
            return DEFAULT_TOKEN_BUDGET["cpu"]
        room = memory_limit(self.setting.device) - MemoryMeter(self.setting.device).used()
        return first_token_budget(self.described, self.setting.device, room, self.base.dtype.itemsize)

    def tenant(self, job: Job) -> Tenant:
        """A job as the trainer takes it, in a folder of its own."""
        self._count += 1
        folder = self._folder / f"{job.name}-{self._count}"
        folder.mkdir()
        rows = [sample for step in job.samples(self.vocabulary) for sample in step]
        data = "".join(json.dumps({"input_ids": ids, "labels": ids}) + "\n" for ids in rows)
        (folder / "data.jsonl").write_text(data)
        width = len(job.steps[0])
        spec = AdapterSpec(
            job_id=job.name,
            name=job.name,
            base_model="random",
            dataset=DatasetConfig(path=str(folder / "data.jsonl"), format="tokens"),
            lora=lora(job),
            training=TrainingConfig(
                learning_rate=RATE,
                lr_scheduler_type="constant",
                max_steps=len(job.steps),
                per_device_train_batch_size=width,
                cutoff_len=max(max(step) for step in job.steps),
                shuffle=False,
                save_steps=10**6,
            ),
            output_dir=str(folder / "out"),
        )
        loaded = load_dataset(spec.dataset, spec.training, _no_tokenizer, self.vocabulary)
        return Tenant(spec, 1, self.base.new_adapter(spec.lora), loaded)

    def trainer(self, jobs: Sequence[Job], budget: int | None = None) -> CoTrainer:
        """A trainer with these jobs."""
        trainer = CoTrainer(self.base, budget or self.budget)
        for job in jobs:
            trainer.attach(self.tenant(job))
        return trainer

    def train(self, jobs: Sequence[Job], budget: int | None = None) -> list[Tenant]:
        """Train to the end; the tenants in the order of the jobs.

        Raises:
            RuntimeError: A job failed.
        """
        trainer = self.trainer(jobs, budget)
        tenants = tenants_of(trainer)
        while not trainer.idle:
            trainer.step()
        check(trainer)
        return tenants


def tenants_of(trainer: CoTrainer) -> list[Tenant]:
    """Those in training."""
    return [trainer._tenants[job_id] for job_id in trainer.tenant_ids()]


def check(trainer: CoTrainer) -> None:
    """Raise if a job failed.

    Raises:
        RuntimeError: One did.
    """
    for report in trainer.reports():
        if report.state is TenantState.FAILED:
            raise RuntimeError(f"{report.job_id} failed: {report.reason}")


def losses(tenant: Tenant) -> list[float]:
    """The loss of every optimizer step."""
    rows = (tenant.output_dir / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(row)["loss"] for row in rows]


def flat(tenant: Tenant) -> torch.Tensor:
    """The adapter's values now."""
    return tenant.weights.flat.detach().clone()


@contextlib.contextmanager
def engine(setting: Setting, model: Any) -> Iterator[Engine]:
    """An engine whose files are gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield Engine(setting, model, Path(folder))


def _no_tokenizer() -> None:
    raise RuntimeError("the samples are tokens already")
