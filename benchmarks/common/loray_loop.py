"""Loray's side: the engine that the actor runs, without Ray around it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from gpu_actor.contract.errors import BaseModelError
from gpu_actor.contract.report import TenantState
from gpu_actor.data.dataset import load_dataset
from gpu_actor.model.base_model import BaseModel
from gpu_actor.training.tenant import Tenant
from gpu_actor.training.trainer import CoTrainer

from .workload import Job, Run


def load_loray(base: str) -> BaseModel:
    """Loray's hooked base model in fp32, as its actor loads it; ends the program in words where there is none."""
    try:
        return BaseModel.load(base)
    except BaseModelError as error:
        print(f"{error}\nTo get the default base model: make model")
        sys.exit(2)


def start_adapter(base: BaseModel, job: Job) -> dict[tuple[str, str], torch.Tensor]:
    """The values that a job's adapter starts from, by (module name, "A" or "B")."""
    weights = base.new_adapter(job.spec.lora)
    weights.initialise(job.spec.training.seed)
    return {
        (weights.names[index], which): tensor
        for index, pair in weights.layers.items()
        for which, tensor in zip("AB", pair, strict=True)
    }


def co_train(base: BaseModel, jobs: Sequence[Job]) -> Run:
    """Train all jobs together with Loray's engine, to their ends."""
    trainer = CoTrainer(base)
    for job in jobs:
        trainer.attach(make_tenant(base, job))
    started = time.perf_counter()
    while not trainer.idle:
        trainer.step()
    seconds = time.perf_counter() - started
    for report in trainer.reports():
        if report.state is not TenantState.SUCCEEDED:
            raise RuntimeError(f"{report.job_id} ended as {report.state.value}: {report.reason}")
    return Run(seconds, sum(job.tokens for job in jobs), [_logged_losses(job) for job in jobs])


def make_tenant(base: BaseModel, job: Job) -> Tenant:
    """A job as the trainer takes it."""
    data = load_dataset(job.spec.dataset, job.spec.training, _no_tokenizer, base.description.vocab_size)
    return Tenant(job.spec, 1, base.new_adapter(job.spec.lora), data)


def _logged_losses(job: Job) -> list[float]:
    rows = Path(job.spec.output_dir, "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(row)["loss"] for row in rows]


def _no_tokenizer() -> None:
    raise RuntimeError("the samples are tokens already")
