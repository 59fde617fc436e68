"""Answers that are wanted or not, and the oracles of KTO: TRL's own trainer, and the paper's formula."""

import tempfile

import numpy as np
import torch

from support.engine import make_spec
from support.oracle import peft_model
from support.pairs import sums_of, trl_arguments, trl_trained
from support.tiny import VOCABULARY


def unpaired_rows(count, seed=0, prompt=(2, 9), answer=(2, 20)):
    """Random pre-tokenised answers; the prompt is masked."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        start = random.integers(3, VOCABULARY, int(random.integers(*prompt))).tolist()
        own = random.integers(3, VOCABULARY, int(random.integers(*answer))).tolist()
        labels = [-100] * len(start) + own
        rows.append({"input_ids": start + own, "labels": labels, "label": bool(random.random() < 0.6)})
    return rows


def unpaired_spec(folder, name, rows, lora=None, training=None, dataset=None):
    """A job that learns from such answers."""
    return make_spec(folder, name, rows, lora, {"objective": "kto", **(training or {})}, dataset)


def kto_loss(model, reference, rows, settings):
    """The paper's loss of one micro-batch, and its KL."""

    def ratios(pairs):
        return [sums_of(model, *pair)[0] - sums_of(reference, *pair)[0] for pair in pairs]

    with torch.no_grad():
        kl = torch.stack(ratios(list(_mismatched(rows)))).mean().clamp(min=0)
    losses = []
    for row, ratio in zip(rows, ratios([(row["input_ids"], row["labels"]) for row in rows]), strict=True):
        if row["label"]:
            losses.append(settings.desirable_weight * (1 - torch.sigmoid(settings.beta * (ratio - kl))))
        else:
            losses.append(settings.undesirable_weight * (1 - torch.sigmoid(settings.beta * (kl - ratio))))
    return torch.stack(losses).mean(), float(kl)


def _mismatched(rows):
    for row, before in zip(rows, [rows[-1], *rows[:-1]], strict=True):
        prompt, skipped = row["labels"].count(-100), before["labels"].count(-100)
        answer = before["input_ids"][skipped:]
        yield row["input_ids"][:prompt] + answer, [-100] * prompt + answer


def trl_kto(model, spec, rows, held_out, start, tokenizer):
    """The same job by TRL's KTOTrainer, from texts or messages: its adapter and its log, evaluations included."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    wrapped = peft_model(model, spec.lora, start)
    training = spec.training
    with tempfile.TemporaryDirectory() as folder:
        arguments = KTOConfig(
            beta=training.beta,
            desirable_weight=training.desirable_weight,
            undesirable_weight=training.undesirable_weight,
            max_length=training.cutoff_len,
            eval_strategy="epoch",
            per_device_eval_batch_size=training.per_device_train_batch_size,
            **trl_arguments(training, len(rows), folder),
        )
        trainer = KTOTrainer(
            model=wrapped,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(held_out),
            processing_class=tokenizer,
        )
        adapter, log = trl_trained(trainer, wrapped, start)
        return adapter, log, [entry for entry in trainer.state.log_history if "eval_loss" in entry]
