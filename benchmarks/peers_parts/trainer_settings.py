"""What `Trainer` and TRL's `SFTTrainer` are told alike: the adapter from its start values, the optimizer, no files."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from side import WARM_UP_TOKENS, Clock, Found, Job
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast


def load(base: str) -> Any:
    """The base model in fp32 with sdpa attention, as transformers loads it."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        model(torch.full((1, WARM_UP_TOKENS), 3))
    return model


def with_adapter(model: Any, job: Job) -> Any:
    """The base model with the job's adapter at its start values."""
    lora = job["spec"]["lora"]
    fields = ("r", "lora_alpha", "lora_dropout", "target_modules")
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **{field: lora[field] for field in fields}))
    for name, values in load_file(job["start"]).items():
        wrapped.get_parameter(name.replace(".weight", ".default.weight")).data.copy_(values)
    return wrapped


def arguments(job: Job) -> dict[str, Any]:
    """The fields of `TrainingArguments` that are the same for both."""
    training = job["spec"]["training"]
    same = ("learning_rate", "lr_scheduler_type", "weight_decay", "max_grad_norm", "seed")
    return {
        **{field: training[field] for field in same},
        "output_dir": job["id"],  # nothing is written there
        "per_device_train_batch_size": training["per_device_train_batch_size"],
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }


def no_tokenizer() -> PreTrainedTokenizerFast:
    """The samples are tokens already, but collators want one: it knows how to pad."""
    words = Tokenizer(WordLevel({"<unk>": 0, "<pad>": 1, "</s>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")


def timed(trainer: Any) -> Found:
    """Train; the seconds that it takes, and the losses."""
    with Clock() as clock:
        trainer.train()
    return {**clock.spent, "losses": [[row["loss"] for row in trainer.state.log_history if "loss" in row]]}
