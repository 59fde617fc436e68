"""Steps of jobs that are all alike, one sample each: how many processor seconds they take."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from gpu_actor.contract.config import AdapterSpec, DatasetConfig, TrainingConfig
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.model.base_model import BaseModel
from gpu_actor.training.trainer import CoTrainer

from . import loray_loop, workload

TOGETHER, IN_TURN = 1_000_000, 1  # token budgets: everything fits, nothing fits beside another


def step_seconds(model: BaseModel, jobs: int, tokens: int, rank: int, rounds: int, budget: int = TOGETHER) -> float:
    """Processor seconds in which every job makes one optimizer step of one sample; the second and later steps."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = CoTrainer(model, budget)
        for number in range(jobs):
            trainer.attach(loray_loop.make_tenant(model, _job(Path(folder), model, number, tokens, rank, rounds + 2)))
        shared = jobs if budget == IN_TURN else 1  # shared batches until everyone has made a step
        for _ in range(shared):
            trainer.step()
        found = []
        for _ in range(rounds):
            started = time.process_time()
            for _ in range(shared):
                trainer.step()
            found.append(time.process_time() - started)
    return median(found)


def _job(folder: Path, model: BaseModel, number: int, tokens: int, rank: int, steps: int) -> workload.Job:
    random = np.random.default_rng(number)
    path = folder / f"data-{number}.jsonl"
    rows = [random.integers(3, model.description.vocab_size, tokens).tolist() for _ in range(steps)]
    path.write_text("".join(json.dumps({"input_ids": row, "labels": row}) + "\n" for row in rows))
    spec = AdapterSpec(
        job_id=f"job-{number}",
        name=f"job-{number}",
        base_model="base",
        dataset=DatasetConfig(path=str(path), format="tokens"),
        lora=LoraConfig(r=rank, target_modules="all-linear"),
        training=TrainingConfig(max_steps=steps, per_device_train_batch_size=1, cutoff_len=max(tokens, 16)),
        output_dir=str(folder / f"out-{number}"),
    )
    return workload.Job(spec, [])
