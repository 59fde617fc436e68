"""What an actor needs to know to train one adapter: validated, immutable, and free of torch and ray.

The field names are those of PEFT and `transformers.TrainingArguments`. So are the defaults, except where a
description says otherwise.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.contract.objective_fields import stray_objective_field, with_objective_defaults
from gpu_actor.contract.strict import Strict

DatasetFormat = Literal["auto", "alpaca", "sharegpt", "messages", "prompt_completion", "text", "tokens", "preference"]
SchedulerName = Literal["constant", "constant_with_warmup", "linear", "cosine"]
Quantization = Literal["nf4", "int8"]


DATA_FIELDS = (
    *("instruction", "input", "output", "system", "history"),
    *("messages", "conversations", "tools", "prompt", "completion", "text", "input_ids", "labels", "label"),
    *("chosen", "rejected", "chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels"),
)
"""The columns that data formats know, and that `dataset.columns` can rename."""


class DataSource(Strict):
    """Where samples come from, how they are split, and how often they are seen."""

    path: str = Field(
        min_length=1,
        description="A .jsonl, .json, .csv or .parquet file, a folder of `datasets.save_to_disk`, or the hub id of a "
        "data set; relative paths start at the job file.",
    )
    format: DatasetFormat = Field(
        "auto", description="How a record is read; `auto` decides by the keys of the first record."
    )
    name: str | None = Field(None, min_length=1, description="Configuration of a data set of the hub.")
    split: str | None = Field(
        None, min_length=1, description="Split of a data set of the hub or of a saved folder; null is `train`."
    )
    columns: dict[str, str] = Field(
        {}, description="From a field of the format to the data set's own column, such as {instruction: question}."
    )
    chat_template: str | None = Field(
        None,
        min_length=1,
        description="Template that renders conversations, instead of the tokenizer's own: Jinja text, or the path of a "
        ".jinja file.",
    )
    val_size: float | int = Field(
        0.0, ge=0, le=10**9, description="Samples held out for evaluation: a share below 1, or a count from 1 up."
    )

    weight: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="In a mix: how often an epoch takes each sample. 2 is twice, 0.5 every other one in turn.",
    )

    @field_validator("chat_template")
    @classmethod
    def _text_or_path(cls, value: str | None) -> str | None:
        if value is not None and "{" not in value and not is_template_path(value):
            raise ValueError(
                f"{value[:80]!r} is neither a template, which has Jinja's braces, nor the path of a .jinja file; names "
                "of templates (chatml) are not known"
            )
        return value

    @field_validator("val_size")
    @classmethod
    def _whole_count(cls, value: float | int) -> float | int:
        if value >= 1 and value != int(value):
            raise ValueError("must be a share below 1 or a whole number of samples")
        return value

    @field_validator("columns", mode="before")
    @classmethod
    def _known_columns(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError("is not a mapping from fields to columns, such as {instruction: question}")
        for field, column in value.items():
            if field not in DATA_FIELDS:
                close = difflib.get_close_matches(str(field)[:80], DATA_FIELDS, n=1)
                hint = f"did you mean {close[0]}?" if close else f"allowed: {', '.join(DATA_FIELDS)}"
                raise ValueError(f"{str(field)[:80]!r} is no field of a data format; {hint}")
            if not isinstance(column, str) or not column:
                raise ValueError(f"{field}: {str(column)[:80]!r} is no name of a column")
        return value

    def samples_per_epoch(self, samples: int) -> int:
        """How many samples an epoch takes of this set, which has so many to train on."""
        return max(1, round(self.weight * samples))


class DatasetConfig(DataSource):
    """What one adapter is trained on: one data set, or a mix of several."""

    mix: list[DataSource] = Field(
        [],
        description="Further data sets that are mixed in. `dataset` may be a list of data sets instead, the first of "
        "which has the others as its mix.",
    )

    @property
    def sources(self) -> tuple[DataSource, ...]:
        """All data sets, in the order given."""
        return (self, *self.mix)

    @model_validator(mode="after")
    def _weight_means_something(self) -> DatasetConfig:
        if self.weight != 1 and not self.mix:
            raise ValueError(
                f"weight ({self.weight:g}) does nothing for a single data set; set training.num_train_epochs instead"
            )
        return self


def is_template_path(chat_template: str) -> bool:
    """Whether a `chat_template` is the path of a .jinja file: a template itself writes something in braces."""
    return "{" not in chat_template and chat_template.endswith(".jinja")


class TrainingConfig(Strict):
    """How one adapter is trained, in the words of `transformers.TrainingArguments`."""

    objective: Literal["sft", "dpo", "cpo", "orpo", "simpo", "kto"] = Field(
        "sft",
        description="What is learned: `sft` from samples; `dpo`, `cpo`, `orpo` and `simpo` from preference pairs; "
        "`kto` from samples whose `label` says whether the answer is wanted.",
    )
    beta: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Strength of the preference term (all but sft; null: 0.1); of the loss ipo it is tau.",
    )
    loss_type: Literal["sigmoid", "hinge", "ipo"] | None = Field(
        None, description="How a pair is compared (dpo, cpo; null: sigmoid)."
    )
    label_smoothing: float | None = Field(
        None,
        ge=0,
        lt=0.5,
        description="Probability that a pair's label is wrong (sigmoid loss of dpo, cpo; simpo; null: 0).",
    )
    cpo_alpha: float | None = Field(
        None, ge=0, le=1000, description="Weight of the likelihood of the chosen answers (cpo; null: 1)."
    )
    gamma: float | None = Field(
        None, ge=0, le=1000, description="Margin that the chosen answer's reward is to have (simpo; null: 0.5)."
    )
    desirable_weight: float | None = Field(
        None, ge=0, le=1000, description="Weight of the loss of wanted answers (kto; null: 1)."
    )
    undesirable_weight: float | None = Field(
        None, ge=0, le=1000, description="Weight of the loss of unwanted answers (kto; null: 1)."
    )
    reference_adapter: str | None = Field(
        None,
        min_length=1,
        description="Folder of the PEFT adapter that is the reference (dpo, kto); null: what the job starts from, "
        "which is lora.init_adapter, or else the base model itself.",
    )
    learning_rate: float = Field(5e-5, gt=0, le=10, description="Peak learning rate of AdamW.")
    loraplus_lr_ratio: float | None = Field(
        None,
        ge=1.0,
        le=10**6,
        description="LoRA+: learning rate of B (and of vectors) over that of A, from 1 up; null trains both alike.",
    )
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
    save_total_limit: int = Field(
        2, ge=1, le=1000, description="Newest checkpoints that are kept until the adapter is finished."
    )
    max_unsaved_steps: int | None = Field(
        None,
        ge=1,
        le=10**9,
        description="Where no checkpoint can be written, on a full disk say: optimizer steps after which a job waits. "
        "null: twice save_steps.",
    )
    eval_steps: int | None = Field(
        None,
        ge=1,
        le=10**9,
        description="Optimizer steps between evaluations; null evaluates at the end of each epoch.",
    )
    logging_steps: int = Field(
        1, ge=1, le=10**9, description="Optimizer steps between rows of metrics.jsonl (500 in `Trainer`)."
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_objective(cls, data: Any) -> Any:
        return with_objective_defaults(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _fits_objective(self) -> TrainingConfig:
        wrong = stray_objective_field(self.objective, self.model_dump())
        if wrong:
            raise ValueError(wrong)
        return self

    @model_validator(mode="after")
    def _has_mismatched_pairs(self) -> TrainingConfig:
        if self.objective == "kto" and self.per_device_train_batch_size < 2:
            raise ValueError(
                "per_device_train_batch_size (1) must be at least 2 with the objective kto, which estimates from the "
                "answers of other samples of the micro-batch how far the model has moved; raise it, and lower "
                "gradient_accumulation_steps to keep an optimizer step as large as it is"
            )
        return self

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
        None,
        min_length=1,
        description="The jobs of one submission that are compared with each other; null: those of the grid.",
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
    quantization: Quantization | None = Field(
        None, description="How the base's linear layers are kept; null: as dtype."
    )
    memory_limit: int | None = Field(None, gt=0, description="Bytes the actor may use; null: all that the device has.")
    memory_share: float = Field(1.0, gt=0, le=1, description="Share of an accelerator that is its own.")
    token_budget: int | None = Field(
        None, gt=0, description="Most tokens in one shared batch (a larger micro-batch goes alone); null: the default."
    )
    cpu_threads: int | None = Field(None, ge=1, description="Threads of a CPU actor; null: one per core.")
    gradient_checkpointing: bool = False
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the base model.")
    allow_pickle: bool = Field(False, description="Read pickled weights (.bin) where there are no safetensors.")
    allowed_roots: tuple[str, ...] = Field((), description="Folders below which jobs write; none: anywhere.")

    @model_validator(mode="after")
    def _quantization_fits(self) -> ActorOptions:
        check_quantization(self.quantization, self.dtype)
        return self


def check_quantization(quantization: Quantization | None, dtype: str) -> None:
    """Check that a quantised base can compute in this number format.

    Raises:
        ValueError: It cannot.
    """
    if quantization is not None and dtype == "float64":
        raise ValueError(
            f"quantization {quantization} does not go with dtype float64; allowed: float32, bfloat16, float16"
        )
