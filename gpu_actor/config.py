"""What an actor needs to know to train one adapter: validated, immutable, and free of torch and ray.

The field names are those of PEFT and `transformers.TrainingArguments`. So are the defaults, except where a
description says otherwise.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

DatasetFormat = Literal["auto", "alpaca", "messages", "prompt_completion", "text", "tokens"]
SchedulerName = Literal["constant", "constant_with_warmup", "linear", "cosine"]


class Strict(BaseModel):
    """Base of every configuration: immutable, unknown fields refused, no NaN or infinity, no silent casts."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class DatasetConfig(Strict):
    """Where the samples of one adapter come from and how they are split."""

    path: str = Field(min_length=1, description="A .jsonl or .json file; relative paths start at the job file.")
    format: DatasetFormat = Field(
        "auto", description="How a record is read; `auto` decides by the keys of the first record."
    )
    val_size: float | int = Field(
        0.0, ge=0, le=10**9, description="Samples held out for evaluation: a share below 1, or a count from 1 up."
    )

    @field_validator("val_size")
    @classmethod
    def _whole_count(cls, value: float | int) -> float | int:
        if value >= 1 and value != int(value):
            raise ValueError("must be a share below 1 or a whole number of samples")
        return value


class LoraConfig(Strict):
    """The shape of one adapter, in PEFT's words."""

    r: int = Field(8, ge=1, le=4096, description="Rank of the adapter.")
    lora_alpha: float = Field(
        8, gt=0, le=10**6, description="Scale: the update is multiplied by lora_alpha / r (or lora_alpha / sqrt(r))."
    )
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout on the adapter's input while training.")
    target_modules: str | list[str] = Field(
        "all-linear",
        description="Linear layers to adapt: a list of name endings, one regular expression for the whole name, or "
        "`all-linear` (the default here; PEFT's depends on the model): all but the output head.",
    )
    use_rslora: bool = Field(False, description="Scale by lora_alpha / sqrt(r) (rank-stabilised LoRA).")
    init_adapter: str | None = Field(
        None, min_length=1, description="Folder of a PEFT adapter to start from; null starts as PEFT does."
    )

    @field_validator("target_modules")
    @classmethod
    def _targets(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list):
            if not value or not all(value):
                raise ValueError("must name at least one module")
            if len(set(value)) != len(value):
                raise ValueError("names a module twice")
        else:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"is not a regular expression: {error}") from None
        return value

    @property
    def scaling(self) -> float:
        """The factor on the low-rank update."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


class TrainingConfig(Strict):
    """How one adapter is trained, in the words of `transformers.TrainingArguments`."""

    learning_rate: float = Field(5e-5, gt=0, le=10, description="Peak learning rate of AdamW.")
    num_train_epochs: float = Field(
        3.0, gt=0, le=10**6, description="Passes over the data; ignored when max_steps is set."
    )
    max_steps: int | None = Field(None, ge=1, le=10**9, description="Optimizer steps to make; null counts by epochs.")
    per_device_train_batch_size: int = Field(8, ge=1, le=65536, description="Samples in one micro-batch.")
    gradient_accumulation_steps: int = Field(1, ge=1, le=65536, description="Micro-batches in one optimizer step.")
    lr_scheduler_type: SchedulerName = Field("linear", description="Schedule, by the names of transformers.")
    warmup_ratio: float = Field(0.0, ge=0.0, le=1.0, description="Share of the steps that warm up.")
    warmup_steps: int = Field(0, ge=0, le=10**9, description="Steps that warm up; overrides warmup_ratio when above 0.")
    weight_decay: float = Field(0.0, ge=0.0, le=100.0, description="Decoupled weight decay of AdamW.")
    adam_beta1: float = Field(0.9, ge=0.0, lt=1.0, description="Decay of AdamW's first moment.")
    adam_beta2: float = Field(0.999, ge=0.0, lt=1.0, description="Decay of AdamW's second moment.")
    adam_epsilon: float = Field(1e-8, gt=0.0, description="AdamW's epsilon.")
    max_grad_norm: float = Field(1.0, ge=0.0, description="Clip of this adapter's gradient norm; 0 switches it off.")
    cutoff_len: int = Field(
        1024, ge=2, le=1_048_576, description="Longest sample in tokens; the rest is cut off and counted."
    )
    train_on_inputs: bool = Field(False, description="Take loss on the prompt as well as on the answer.")
    shuffle: bool = Field(True, description="Shuffle each epoch as `Trainer` does; false keeps the file's order.")
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = Field(
        42, description="Decides initial weights, order of the data, dropout and the evaluation split."
    )
    save_steps: int = Field(100, ge=1, le=10**9, description="Optimizer steps between checkpoints (500 in `Trainer`).")
    eval_steps: int | None = Field(
        None,
        ge=1,
        le=10**9,
        description="Optimizer steps between evaluations; null evaluates at the end of each epoch.",
    )
    logging_steps: int = Field(
        1, ge=1, le=10**9, description="Optimizer steps between rows of metrics.jsonl (500 in `Trainer`)."
    )

    @model_validator(mode="after")
    def _warmup_fits(self) -> TrainingConfig:
        if self.max_steps is not None and self.warmup_steps > self.max_steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must not exceed max_steps ({self.max_steps})")
        return self

    def total_steps(self, samples: int) -> int:
        """Optimizer steps of the whole run, as `Trainer` counts them (ragged tails included).

        Args:
            samples: Number of training samples, at least 1.
        """
        if self.max_steps is not None:
            return self.max_steps
        return math.ceil(self.num_train_epochs * self.steps_per_epoch(samples))

    def steps_per_epoch(self, samples: int) -> int:
        """Optimizer steps in one pass over `samples` samples."""
        micro_batches = math.ceil(samples / self.per_device_train_batch_size)
        return math.ceil(micro_batches / self.gradient_accumulation_steps)


class EarlyStopConfig(Strict):
    """When a job may stop before its last step. Nothing stops unless it is asked for."""

    patience: int | None = Field(
        None,
        ge=1,
        le=10**6,
        description="Stop after so many evaluations without improvement, with the best adapter; needs "
        "dataset.val_size. null: never.",
    )
    min_delta: float = Field(0.0, ge=0.0, description="An evaluation loss must fall by more than this to improve.")
    diverged_above: float | None = Field(
        None,
        gt=1.0,
        description="Fail once the loss, averaged, is above so many times its start, warm-up over. null: only when "
        "it is not finite.",
    )
    halving_steps: int | None = Field(
        None,
        ge=1,
        le=10**9,
        description="In a grid: compare the jobs after so many optimizer steps, then after twice as many, and so on, "
        "and stop all but the best at each rung. null: never.",
    )
    halving_keep: float = Field(0.5, gt=0.0, lt=1.0, description="Share of a grid's jobs that passes a rung.")
    group: str | None = Field(
        None, min_length=1, description="The jobs that are compared with each other; null: those of the grid."
    )


class AdapterSpec(Strict):
    """One adapter to train, all paths absolute: what the orchestrator hands to an actor."""

    job_id: str
    name: str
    base_model: str
    dataset: DatasetConfig
    lora: LoraConfig
    training: TrainingConfig
    early_stop: EarlyStopConfig = Field(default_factory=EarlyStopConfig)
    output_dir: str


class ActorOptions(Strict):
    """How one actor hosts its base model."""

    name: str
    base_model: str = Field(description="Folder, or hub id, as the jobs name it.")
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="`cpu`, `cuda` or `cuda:<n>`.")
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    memory_limit: int | None = Field(None, gt=0, description="Bytes the actor may use; null: all that the device has.")
    token_budget: int | None = Field(
        None, gt=0, description="Most tokens in one shared batch (a larger micro-batch goes alone); null: the default."
    )
    cpu_threads: int | None = Field(None, ge=1, description="Threads of a CPU actor; null: one per core.")
    gradient_checkpointing: bool = False
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the base model.")
