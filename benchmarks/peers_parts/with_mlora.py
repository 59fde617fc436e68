"""m-LoRA as published on PyPI (moe-peft), all jobs together; `mlora.patch` is what had to be changed in it.

It makes activations again in backward, always; the variant `kept` switches that off.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

os.environ["MOE_PEFT_EXECUTOR_TYPE"] = "CPU"

import moe_peft
import moe_peft.trainer
import torch
from moe_peft.common import InputData
from safetensors.torch import load_file
from side import WARM_UP_TOKENS, Clock, Found, Job, run, samples

_PAD = 2  # no sample holds it
_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class _Tokens:
    """Stands for a tokenizer: the samples are tokens already."""

    padding_side_ = "right"
    pad_id_ = _PAD

    def mask_from(self, tokens: list[int]) -> list[int]:
        return [int(token != _PAD) for token in tokens]


@dataclass
class _Config(moe_peft.TrainConfig):
    rows: list[Any] = field(default_factory=list)

    def _dataload_fn(self, *_: Any, **__: Any) -> list[Any]:
        return [InputData(tokens=row["input_ids"], labels=row["labels"]) for row in self.rows]


def _load(base: str) -> Any:
    model = moe_peft.LLMModel.from_pretrained(base, device="cpu", attn_impl="eager", load_dtype=torch.float32)
    name = model.init_adapter(moe_peft.AdapterConfig(adapter_name="warm-up"))
    tokens = [[3] * WARM_UP_TOKENS]
    batch = moe_peft.LLMBatchConfig(name, 0, 1)
    with torch.no_grad():
        model.forward(moe_peft.LLMModelInput([batch], tokens, None, [[1] * WARM_UP_TOKENS]))
    for kept in (model.output_.layers_, model.adapter_configs_):
        del kept[name]  # `unload_adapter` knows none without weights
    return model


def _train(model: Any, jobs: list[Job], variant: str) -> Iterator[Found]:
    configs = [_prepare(model, job) for job in jobs]
    losses: dict[str, list[torch.Tensor]] = {job["id"]: [] for job in jobs}
    if variant == "kept":
        _keep_activations(model)
    _record(losses)
    with Clock() as clock:
        moe_peft.train(model, _Tokens(), configs, cutoff_len=model.config_.max_seq_len_)
    yield {**clock.spent, "losses": [[loss.item() for loss in losses[job["id"]]] for job in jobs]}


def _prepare(model: Any, job: Job) -> _Config:
    """The job's adapter at its start values, and its training."""
    lora, training = job["spec"]["lora"], job["spec"]["training"]
    every = lora["target_modules"] == "all-linear"
    adapter = {
        "name": job["id"],
        "task_name": "casual",
        "r": lora["r"],
        "lora_alpha": int(lora["lora_alpha"]),
        "lora_dropout": float(lora["lora_dropout"]),
        "target_modules": _LINEAR if every else lora["target_modules"],
    }
    model.init_adapter(moe_peft.LoraConfig.from_config(adapter).check(), load_file(job["start"]))
    return _Config(
        adapter_name=job["id"],
        num_epochs=1,
        batch_size=training["per_device_train_batch_size"],
        micro_batch_size=training["per_device_train_batch_size"],
        learning_rate=training["learning_rate"],
        weight_decay=training["weight_decay"],
        scheduler_type=training["lr_scheduler_type"],
        rows=samples(job),
    )


def _keep_activations(model: Any) -> None:
    forward = model.forward

    def kept(batch: Any, *rest: Any) -> Any:
        batch.gradient_checkpoint_ = "none"
        return forward(batch, *rest)

    model.forward = kept


def _record(losses: dict[str, list[torch.Tensor]]) -> None:
    """Keep what m-LoRA would only write to its log."""
    compute = moe_peft.trainer._compute_loss

    def recorded(configs: Any, outputs: Any) -> Any:
        for output in outputs:
            losses[output.adapter_name].append(output.loss.detach())
        return compute(configs, outputs)

    moe_peft.trainer._compute_loss = recorded


if __name__ == "__main__":
    run(_load, _train)
