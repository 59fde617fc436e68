"""Optimizer and learning-rate schedule of one adapter, as `transformers.Trainer` makes them."""

from __future__ import annotations

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.contract.config import TrainingConfig
from gpu_actor.training.schedules import make_schedule


def make_optimizer(weights: AdapterWeights, training: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) over one adapter and nothing else; LoRA+ gives B and vectors a rate of their own."""
    ratio = training.loraplus_lr_ratio
    rates = [] if ratio is None else [training.learning_rate, training.learning_rate * ratio]
    groups = [{"params": [part], "lr": rate} for part, rate in zip(weights.halves(), rates, strict=False) if len(part)]
    return torch.optim.AdamW(
        groups or [weights.flat],
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        weight_decay=training.weight_decay,
        fused=True,
    )


def make_scheduler(optimizer: torch.optim.Optimizer, training: TrainingConfig, total_steps: int) -> LambdaLR:
    """The learning-rate schedule of a job, warm-up counted as `Trainer` does."""
    return make_schedule(training.lr_scheduler_type, optimizer, warmup_steps(training, total_steps), total_steps)


def warmup_steps(training: TrainingConfig, total_steps: int) -> int:
    """Optimizer steps in which the learning rate rises."""
    return training.warmup_steps or math.ceil(total_steps * training.warmup_ratio)
