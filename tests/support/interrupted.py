"""Runs that are interrupted: one job, started and stopped anywhere, and what an uninterrupted one leaves."""

import json

from gpu_actor.training.trainer import CoTrainer
from support.engine import make_spec, make_tenant, run_all
from support.tiny import token_rows

TRAINING = {
    "learning_rate": 3e-3,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 3,
    "save_steps": 2,
    "logging_steps": 3,
}


def spec_in(folder, **training):
    return make_spec(
        folder,
        "job",
        token_rows(14, seed=8),
        {"r": 4, "lora_dropout": 0.1},
        {**TRAINING, **training},
        dataset={"val_size": 3},
    )


def uninterrupted(base, folder):
    tenant = make_tenant(base, spec_in(folder))
    run_all(base, [tenant])
    return tenant


def started(base, spec, steps, token_budget=None):
    """A trainer and its only tenant, which has made `steps` optimizer steps.

    Of 20 tokens, a shared batch holds one micro-batch, so that steps are open in between.
    """
    tenant = make_tenant(base, spec)
    trainer = CoTrainer(base, token_budget)
    trainer.attach(tenant)
    while tenant.progress.step < steps:
        trainer.step()
    return trainer, tenant


def without_time(output_dir):
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]
