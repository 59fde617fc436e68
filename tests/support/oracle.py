"""The oracle: the adapter that transformers' Trainer and PEFT make of the same job, run alone."""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import VeraConfig as PeftVeraConfig
from peft import get_peft_model
from transformers import Trainer, TrainingArguments

_IGNORED = -100


class Padded:
    """Pads a batch on the right, as every collator for causal language models does."""

    def __call__(self, rows):
        longest = max(len(row["input_ids"]) for row in rows)

        def pad(key, value):
            return torch.tensor([list(row[key]) + [value] * (longest - len(row[key])) for row in rows])

        rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
        return {
            "input_ids": pad("input_ids", 0),
            "labels": pad("labels", _IGNORED),
            "attention_mask": pad("attention_mask", 0),
        }


def peft_config(lora):
    """PEFT's own configuration of an adapter of ours."""
    shared = {
        "r": lora.r,
        "target_modules": lora.target_modules,
        "layers_to_transform": lora.layers_to_transform,
        "layers_pattern": lora.layers_pattern,
        "task_type": "CAUSAL_LM",
    }
    if lora.peft_type == "VERA":
        return PeftVeraConfig(
            vera_dropout=lora.vera_dropout,
            d_initial=lora.d_initial,
            projection_prng_key=lora.projection_prng_key,
            save_projection=lora.save_projection,
            **shared,
        )
    return PeftLoraConfig(
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        init_lora_weights=lora.init_lora_weights,
        exclude_modules=lora.exclude_modules,
        rank_pattern=lora.rank_pattern,
        alpha_pattern=lora.alpha_pattern,
        **shared,
    )


def peft_model(model, lora, start=None):
    """PEFT's model of an adapter; `start` maps (module name, tensor) to the start values."""
    wrapped = get_peft_model(model, peft_config(lora), autocast_adapter_dtype=False)
    for (name, which), values in (start or {}).items():
        peft_tensor(wrapped, name, which).data.copy_(values)
    if lora.peft_type == "VERA":  # PEFT keeps the shared matrices in fp32 whatever the model's precision is
        for shared in (wrapped.base_model.vera_A, wrapped.base_model.vera_B):
            shared["default"] = shared["default"].to(model.dtype)
    return wrapped


_PEFT_NAMES = {
    "A": "lora_A.default.weight",
    "B": "lora_B.default.weight",
    "magnitude_vector": "lora_magnitude_vector.default.weight",
    "vera_lambda_b": "vera_lambda_b.default",
    "vera_lambda_d": "vera_lambda_d.default",
}


def peft_tensor(wrapped, name, which):
    """A trained tensor of one module in a PEFT model; `which` is A, B, magnitude_vector, vera_lambda_b or _d."""
    return wrapped.get_parameter(f"base_model.model.{name}.{_PEFT_NAMES[which]}")


def adapter_tensors(weights, gradients=False):
    """The tensors of an adapter of ours (or their gradients), by (module name, which), copied."""
    return {
        (weights.names[index], spec.name.removeprefix("lora_").removesuffix(".weight")): tensor.detach().clone()
        for index, tensors in (weights.gradients if gradients else weights.layers).items()
        for spec, tensor in zip(weights.kind.trained(weights.plans[index]), tensors, strict=True)
    }


def train_alone(model, spec, rows, start):
    """Train an adapter with Trainer and PEFT from the same start; returns its tensors by (module name, which)."""
    wrapped = peft_model(model, spec.lora, start)
    training = spec.training
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            learning_rate=training.learning_rate,
            num_train_epochs=training.num_train_epochs,
            max_steps=training.max_steps or -1,
            per_device_train_batch_size=training.per_device_train_batch_size,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            lr_scheduler_type=training.lr_scheduler_type,
            warmup_steps=training.warmup_steps or training.warmup_ratio,
            weight_decay=training.weight_decay,
            max_grad_norm=training.max_grad_norm,
            seed=training.seed,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(model=wrapped, args=arguments, train_dataset=list(rows), data_collator=Padded())
        trainer.train()
    tensors = {key: peft_tensor(wrapped, *key).detach().clone() for key in start}
    return tensors, [entry for entry in trainer.state.log_history if "loss" in entry]


def largest_difference(ours, theirs):
    """The largest absolute difference between two adapters' tensors."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[key] - theirs[key]).abs().max()) for key in ours)


def metric_rows(output_dir):
    """The rows of metrics.jsonl that log an optimizer step."""
    lines = Path(output_dir, "metrics.jsonl").read_text("utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


def same_bytes(one, other):
    """Whether two tensors are equal to the bit."""
    return np.array_equal(one.numpy().view(np.uint8), other.numpy().view(np.uint8))


def plain_loop(model, spec, rows, start):
    """PEFT and a plain training loop, in the model's own precision (Trainer computes every loss in fp32).

    One sample per forward, no padding; written to be read, not to be fast.
    """
    from transformers import get_scheduler

    wrapped = peft_model(model, spec.lora, start)
    training = spec.training
    total = training.total_steps(len(rows))
    trainable = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=training.learning_rate, weight_decay=training.weight_decay)
    warmup = training.warmup_steps or int(np.ceil(total * training.warmup_ratio))
    scheduler = get_scheduler(training.lr_scheduler_type, optimizer, warmup, total)
    per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
    order = []
    for epoch in range(1 + total * per_step // len(rows) + total):
        order.append(torch.randperm(len(rows), generator=torch.Generator().manual_seed(training.seed + epoch)).tolist())
    batches = [epoch[i : i + per_step] for epoch in order for i in range(0, len(rows), per_step)]
    for batch in batches[:total]:
        losses, counted = [], 0
        for number in batch:
            ids = torch.tensor(rows[number]["input_ids"])[None]
            labels = torch.tensor(rows[number]["labels"])[1:]
            logits = wrapped(input_ids=ids).logits[0, :-1]
            losses.append(torch.nn.functional.cross_entropy(logits, labels, ignore_index=_IGNORED, reduction="sum"))
            counted += int((labels != _IGNORED).sum())
        (sum(losses) / counted).backward()
        if training.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(trainable, training.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return {key: peft_tensor(wrapped, *key).detach().clone() for key in start}
