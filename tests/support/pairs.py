"""Preference pairs, and the oracles of preference training: TRL's own code, and the papers' formulas in plain loops."""

import math
import tempfile
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn.functional import logsigmoid
from transformers import get_scheduler

from support.engine import make_spec
from support.oracle import Padded, peft_model, peft_tensor
from support.tiny import VOCABULARY


def pair_rows(count, seed=0, prompt=(2, 9), answer=(2, 20)):
    """Random pre-tokenised pairs; both sides of one share their prompt, which is masked."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        start = random.integers(3, VOCABULARY, int(random.integers(*prompt))).tolist()
        row = {}
        for side in ("chosen", "rejected"):
            own = random.integers(3, VOCABULARY, int(random.integers(*answer))).tolist()
            row |= {f"{side}_input_ids": start + own, f"{side}_labels": [-100] * len(start) + own}
        rows.append(row)
    return rows


def pair_spec(folder, name, rows, lora=None, training=None, dataset=None):
    """A job that learns from pairs."""
    return make_spec(folder, name, rows, lora, training, {"format": "preference", **(dataset or {})})


def sums_of(model, ids, labels):
    """Log-probability of what is labelled and of what is not, and how many tokens either has; one text."""
    logits = model(input_ids=torch.tensor(ids)[None]).logits[0, :-1]
    log_p = logits.log_softmax(-1).gather(1, torch.tensor(ids)[1:, None])[:, 0]
    answer = torch.tensor(labels)[1:] != -100
    return log_p[answer].sum(), log_p[~answer].sum(), int(answer.sum()), int((~answer).sum())


def step_loss(model, reference, rows, settings):
    """The papers' loss of one optimizer step over `rows`; `reference` gives a pair's two reference sums."""
    beta, kind = settings.beta, settings.loss_type
    total, nll, nll_tokens = 0.0, 0.0, 0
    for row in rows:
        chosen, prompt, n_chosen, n_prompt = sums_of(model, row["chosen_input_ids"], row["chosen_labels"])
        rejected, _, n_rejected, _ = sums_of(model, row["rejected_input_ids"], row["rejected_labels"])
        if settings.objective == "orpo":
            p_chosen, p_rejected = chosen / n_chosen, rejected / n_rejected
            odds = [p - torch.log1p(-torch.exp(p)) for p in (p_chosen, p_rejected)]
            total = total - beta * logsigmoid(odds[0] - odds[1])
            nll, nll_tokens = nll - chosen - prompt, nll_tokens + n_chosen + n_prompt
            continue
        if settings.objective == "simpo":
            margin = beta * (chosen / n_chosen - rejected / n_rejected) - settings.gamma
            flipped = settings.label_smoothing
            total = total - (1 - flipped) * logsigmoid(margin) - flipped * logsigmoid(-margin)
            continue
        if settings.objective == "dpo":
            ref_chosen, ref_rejected = reference(row)
            chosen, rejected = chosen - ref_chosen, rejected - ref_rejected
        else:
            nll, nll_tokens = nll - settings.cpo_alpha * chosen, nll_tokens + n_chosen
        if kind == "ipo":
            total = total + (chosen / n_chosen - rejected / n_rejected - 1 / (2 * beta)) ** 2
        elif kind == "hinge":
            total = total + torch.clamp(1 - beta * (chosen - rejected), min=0)
        else:
            flipped, delta = settings.label_smoothing, beta * (chosen - rejected)
            total = total - (1 - flipped) * logsigmoid(delta) - flipped * logsigmoid(-delta)
    return total / len(rows) + (nll / nll_tokens if nll_tokens else 0.0)


def formula_loop(model, spec, rows, start, reference=None):
    """PEFT and a plain loop over the papers' formulas; `reference` is another PEFT model, None is the bare base."""
    wrapped = peft_model(model, spec.lora, start)
    training = spec.training

    def reference_sums(row):
        with torch.no_grad():
            sides = [(row[f"{side}_input_ids"], row[f"{side}_labels"]) for side in ("chosen", "rejected")]
            if reference is not None:
                return [sums_of(reference, *side)[0] for side in sides]
            with wrapped.disable_adapter():
                return [sums_of(wrapped, *side)[0] for side in sides]

    total = training.total_steps(len(rows))
    trainable = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=training.learning_rate, weight_decay=training.weight_decay)
    warmup = training.warmup_steps or math.ceil(total * training.warmup_ratio)
    scheduler = get_scheduler(training.lr_scheduler_type, optimizer, warmup, total)
    per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
    batches = []
    for epoch in range(total):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(training.seed + epoch)).tolist()
        batches += [order[i : i + per_step] for i in range(0, len(rows), per_step)]
    losses = []
    for batch in batches[:total]:
        loss = step_loss(wrapped, reference_sums, [rows[i] for i in batch], training)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, training.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return {key: peft_tensor(wrapped, *key).detach().clone() for key in start}, losses


def trl_arguments(training, samples, folder):
    """What TRL's configurations take from transformers' TrainingArguments."""
    return {
        "output_dir": folder,
        "learning_rate": training.learning_rate,
        "max_steps": training.total_steps(samples),
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "lr_scheduler_type": training.lr_scheduler_type,
        "warmup_steps": training.warmup_steps,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "seed": training.seed,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }


def trl_trained(trainer, wrapped, start):
    """Run a trainer of TRL's: its adapter and its log."""
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {key: peft_tensor(wrapped, *key).detach().clone() for key in start}, log


def trl_dpo(model, spec, rows, start, tokenizer):
    """The same job by TRL's DPOTrainer: its adapter and its log."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Tokenised(DPOTrainer):
        """The samples are token ids already."""

        def _prepare_dataset(self, dataset, *_):
            return dataset

    wrapped = peft_model(model, spec.lora, start)
    training = spec.training
    columns = []
    for row in rows:
        prompt = row["chosen_labels"].count(-100)
        columns.append(
            {
                "prompt_ids": row["chosen_input_ids"][:prompt],
                "chosen_ids": row["chosen_input_ids"][prompt:],
                "rejected_ids": row["rejected_input_ids"][prompt:],
            }
        )
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(
            beta=training.beta, loss_type=training.loss_type, **trl_arguments(training, len(rows), folder)
        )
        trainer = Tokenised(
            model=wrapped, args=arguments, train_dataset=Dataset.from_list(columns), processing_class=tokenizer
        )
        return trl_trained(trainer, wrapped, start)


def trl_simpo(model, spec, rows, start, tokenizer):
    """The same job by TRL's CPOTrainer with its loss simpo: its adapter and its log."""
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    class Tokenised(CPOTrainer):
        """The samples are token ids already."""

        def tokenize_row(self, feature, model=None):
            prompt = feature["chosen_input_ids"][: feature["chosen_labels"].count(-100)]
            sides = {"chosen": feature["chosen_input_ids"], "rejected": feature["rejected_input_ids"], "prompt": prompt}
            masks = {f"{name}_attention_mask": [1] * len(ids) for name, ids in sides.items()}
            return {**feature, **masks, "prompt_input_ids": prompt}

    wrapped = peft_model(model, spec.lora, start)
    training = spec.training
    with tempfile.TemporaryDirectory() as folder:
        arguments = CPOConfig(
            beta=training.beta,
            loss_type="simpo",
            cpo_alpha=0.0,
            simpo_gamma=training.gamma,
            label_smoothing=training.label_smoothing,
            **trl_arguments(training, len(rows), folder),
        )
        columns = [{**row, "prompt": "", "chosen": "", "rejected": ""} for row in rows]
        trainer = Tokenised(
            model=wrapped, args=arguments, train_dataset=Dataset.from_list(columns), processing_class=tokenizer
        )
        return trl_trained(trainer, wrapped, start)


def trl_one_batch(model, rows, settings):
    """Loss and metrics of one batch by TRL's CPOTrainer or ORPOTrainer, without their set-up."""
    if settings.objective == "orpo":
        from trl.experimental.orpo import ORPOTrainer as Trainer
    else:
        from trl.experimental.cpo import CPOTrainer as Trainer
    batch = {}
    for side in ("chosen", "rejected"):
        padded = Padded()([{"input_ids": r[f"{side}_input_ids"], "labels": r[f"{side}_labels"]} for r in rows])
        batch |= {f"{side}_{name}": values for name, values in padded.items()}
    trainer = SimpleNamespace(
        alpha=0.0,
        is_encoder_decoder=False,
        aux_loss_enabled=False,
        pad_token_id=0,
        padding_value=0,
        beta=settings.beta,
        loss_type="simpo" if settings.objective == "simpo" else settings.loss_type,
        label_smoothing=settings.label_smoothing,
        cpo_alpha=settings.cpo_alpha or 0.0,
        simpo_gamma=settings.gamma,
        accelerator=SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda value: value),
    )
    for name in ("concatenated_inputs", "get_batch_logps"):
        setattr(trainer, name, getattr(Trainer, name))
    for name in ("concatenated_forward", "cpo_loss", "odds_ratio_loss"):
        if hasattr(Trainer, name):
            setattr(trainer, name, getattr(Trainer, name).__get__(trainer))
    return Trainer.get_batch_loss_metrics(trainer, model, batch)
