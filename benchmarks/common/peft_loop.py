"""The peer: PEFT and a plain training loop, one job at a time, on batches padded as Trainer's collators pad them.

It has what an ordinary user's run has: sdpa attention, fused AdamW, no key-value cache, no activation checkpointing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, get_scheduler

from gpu_actor.paths.locations import resolve_base_model

from .workload import Job, Run

Start = Mapping[tuple[str, str], torch.Tensor]  # by (module name, "A" or "B")


def load_plain(base: str) -> Any:
    """The base model in fp32, as transformers loads it."""
    model = AutoModelForCausalLM.from_pretrained(resolve_base_model(base), dtype=torch.float32)
    return model.requires_grad_(False)


def peft_model(model: Any, job: Job, start: Start | None = None) -> Any:
    """The base model with a PEFT adapter, from start values if given; `unload()` gives the base back."""
    lora = job.spec.lora
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, config)
    for (name, which), values in (start or {}).items():
        wrapped.get_parameter(f"base_model.model.{name}.lora_{which}.default.weight").data.copy_(values)
    return wrapped


def train_alone(model: Any, job: Job, start: Start | None = None) -> Run:
    """Train one job; the base model is the same before and after."""
    wrapped = peft_model(model, job, start)
    wrapped.train()
    training = job.spec.training
    trainable = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True)
    scheduler = get_scheduler(training.lr_scheduler_type, optimizer, 0, training.max_steps)
    losses: list[float] = []
    started = time.perf_counter()
    for batch in job.batches():
        loss = wrapped(**padded(batch), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, training.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    seconds = time.perf_counter() - started
    wrapped.unload()
    return Run(seconds, job.tokens, [losses])


def padded(batch: Sequence[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """Samples padded on the right to the longest of them, with attention mask and labels."""
    longest = max(len(ids) for ids, _ in batch)

    def pad(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])

    return {
        "input_ids": pad([ids for ids, _ in batch], 0),
        "attention_mask": pad([[1] * len(ids) for ids, _ in batch], 0),
        "labels": pad([labels for _, labels in batch], -100),
    }
