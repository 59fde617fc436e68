"""Jobs of differing shape, each from its number and a seed, and what each makes alone without Ray around it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gpu_actor.contract.config import DatasetConfig, TrainingConfig
from gpu_actor.contract.errors import LorayError
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.contract.report import TenantState
from gpu_actor.data.dataset import LoadedDataset, load_dataset
from gpu_actor.hosting.preparer import load_data
from gpu_actor.model.base_model import BaseModel
from gpu_actor.training.references import read_reference
from gpu_actor.training.tenant import Tenant
from gpu_actor.training.trainer import CoTrainer
from orchestrator.jobs.job import JobSpec, QueueConfig

_VOCABULARY = 256
# Nobody can tell a kill from outside from a crash. A job that is on two killed actors in a row is tried alone, and if
# that one is killed as well it is charged; with the usual two retries it would have failed.
_MOST_RETRIES = 100
_TARGETS = ("all-linear", ["q_proj", "v_proj"], ["gate_proj", "up_proj", "down_proj"])


def save_base(folder: Path) -> str:
    """Write a tiny random base model; returns its folder."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCABULARY, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def make(number: int, seed: int, base: str, folder: Path, outputs: Path, steps: tuple[int, int]) -> JobSpec:
    """The job of a number.

    Args:
        number: Of the job.
        seed: Of the whole run.
        base: Folder of the base model.
        folder: Where data files are written.
        outputs: Where output folders go.
        steps: Least and most optimizer steps.
    """
    draw = random.Random(f"{seed} {number}")
    data = folder / f"job-{number}.jsonl"
    rows = [_sample(draw) for _ in range(draw.randint(8, 40))]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    count = draw.randint(*steps)
    lora: dict[str, Any] = {
        "r": draw.choice([2, 4, 8, 16]),
        "lora_alpha": draw.choice([8, 16]),
        "lora_dropout": draw.choice([0.0, 0.0, 0.1]),
        "target_modules": draw.choice(_TARGETS),
        "use_rslora": draw.random() < 0.3,
        "use_dora": draw.random() < 0.2,
    }
    return JobSpec(
        name=f"job-{number}",
        base_model=base,
        dataset=DatasetConfig(path=str(data), format="tokens", val_size=draw.choice([0.0, 0.0, 0.2])),
        lora=LoraConfig(**lora),
        training=TrainingConfig(
            max_steps=count,
            learning_rate=draw.choice([1e-4, 1e-3]),
            per_device_train_batch_size=draw.randint(1, 4),
            gradient_accumulation_steps=draw.choice([1, 1, 2]),
            lr_scheduler_type=draw.choice(["linear", "cosine", "constant"]),
            warmup_ratio=draw.choice([0.0, 0.1]),
            cutoff_len=64,
            save_steps=draw.randint(3, max(4, count // 5)),
            max_unsaved_steps=draw.randint(5, 20),
            seed=draw.randint(0, 1000),
        ),
        queue=QueueConfig(max_retries=_MOST_RETRIES),
        output_dir=str(outputs / f"job-{number}"),
    )


def _sample(draw: random.Random) -> dict[str, list[int]]:
    ids = [draw.randrange(3, _VOCABULARY) for _ in range(draw.randint(5, 50))]
    prompt = draw.randint(1, len(ids) // 2)
    return {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}


def train_alone(base: BaseModel, spec: JobSpec, output_dir: Path) -> None:
    """Train a job by itself in this process, undisturbed.

    Raises:
        RuntimeError: It did not succeed.
    """
    alone = spec.to_adapter_spec("alone").model_copy(update={"output_dir": str(output_dir)})
    trainer = CoTrainer(base)
    data = load_data(base, alone, _read_here)
    trainer.attach(Tenant(alone, 1, base.new_adapter(alone.lora), data, read_reference(base, alone)))
    while not trainer.idle:
        trainer.step()
    (report,) = trainer.reports()
    if report.state is not TenantState.SUCCEEDED:
        raise RuntimeError(f"{spec.name} alone ended as {report.state.value}: {report.reason}")


def _read_here(dataset: DatasetConfig, training: TrainingConfig, _positions: int | None) -> LoadedDataset:
    return load_dataset(dataset, training, _no_tokenizer, _VOCABULARY)


def _no_tokenizer() -> Any:
    raise LorayError("the samples are tokens already")
