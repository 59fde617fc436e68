"""What an actor needs to know to train one adapter: validated, immutable, and free of torch and ray.

The field names are those of PEFT and `transformers.TrainingArguments`. So are the defaults, except where a
description says otherwise.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

DatasetFormat = Literal["auto", "alpaca", "sharegpt", "messages", "prompt_completion", "text", "tokens", "preference"]
SchedulerName = Literal["constant", "constant_with_warmup", "linear", "cosine"]
Number = TypeVar("Number", int, float)
_PISSA_ROUNDS = re.compile(r"pissa_niter_([1-9]\d{0,2})$")


DATA_FIELDS = (
    *("instruction", "input", "output", "system", "history"),
    *("messages", "conversations", "tools", "prompt", "completion", "text", "input_ids", "labels"),
    *("chosen", "rejected", "chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels"),
)
"""The columns that data formats know, and that `dataset.columns` can rename."""


class Strict(BaseModel):
    """Base of every configuration: immutable, unknown fields refused, no NaN or infinity, no silent casts."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class DatasetConfig(Strict):
    """Where the samples of one adapter come from and how they are split."""

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


def is_template_path(chat_template: str) -> bool:
    """Whether a `chat_template` is the path of a .jinja file: a template itself writes something in braces."""
    return "{" not in chat_template and chat_template.endswith(".jinja")


class LoraConfig(Strict):
    """The kind and shape of one adapter, in PEFT's words.

    LoRA (arXiv 2106.09685), rsLoRA (2312.03732), DoRA (2402.09353), PiSSA (2404.02948) and VeRA (2310.11454).
    """

    peft_type: Literal["LORA", "VERA"] = Field(
        "LORA",
        description="Kind of adapter: LORA trains two low-rank matrices per layer; VERA trains two vectors per layer "
        "between random matrices that are frozen and shared by all layers.",
    )
    r: int = Field(8, ge=1, le=4096, description="Rank of the adapter; VERA must be given one (PEFT's default: 256).")
    lora_alpha: float = Field(
        8, gt=0, le=10**6, description="Scale: the update is multiplied by lora_alpha / r (or lora_alpha / sqrt(r))."
    )
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout on the adapter's input while training.")
    target_modules: str | list[str] = Field(
        "all-linear",
        description="Linear layers to adapt: a list of name endings, one regular expression for the whole name, or "
        "`all-linear` (the default here; PEFT's depends on the model): all but the output head.",
    )
    exclude_modules: str | list[str] | None = Field(
        None, description="Linear layers to leave out: a list of name endings, or one regular expression."
    )
    layers_to_transform: int | list[int] | None = Field(
        None, description="Numbers of the layers to adapt (a number or a list); null adapts all."
    )
    layers_pattern: str | list[str] | None = Field(
        None,
        description="Name of the list of layers, such as `layers` or `h`, that layers_to_transform counts in; null "
        "takes the first number in a module's name.",
    )
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=4096)]] = Field(
        {},
        description="Name ending, or regular expression for it, to the rank there; the first that fits decides.",
    )
    alpha_pattern: dict[str, Annotated[float, Field(gt=0, le=10**6)]] = Field(
        {},
        description="Name ending, or regular expression for it, to the lora_alpha there; the first that fits decides.",
    )
    use_rslora: bool = Field(False, description="Scale by lora_alpha / sqrt(r) (rank-stabilised LoRA).")
    use_dora: bool = Field(
        False, description="Train the length of each output's weights apart from their direction (DoRA)."
    )
    init_lora_weights: bool | str = Field(
        True,
        description="Start values: true (A random, B zero), gaussian, orthogonal, pissa (the base's largest singular "
        "values), or pissa_niter_<n> (the same, approximated in n rounds and much faster).",
    )
    vera_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout on the input of a VERA adapter.")
    d_initial: float = Field(0.1, ge=-(10**6), le=10**6, description="Start value of VERA's vector lambda_d.")
    projection_prng_key: int = Field(
        0, ge=0, le=2**63 - 1, description="Seed of VERA's random matrices; equal keys give equal matrices."
    )
    save_projection: bool = Field(
        True, description="Save VERA's random matrices with the adapter; false makes them anew from the key."
    )
    init_adapter: str | None = Field(
        None, min_length=1, description="Folder of a PEFT adapter to start from; null starts as PEFT does."
    )

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _modules(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list):
            if not value or not all(value):
                raise ValueError("must name at least one module")
            if len(set(value)) != len(value):
                raise ValueError("names a module twice")
        elif value is not None:
            _check_expression(value)
        return value

    @field_validator("layers_to_transform")
    @classmethod
    def _layer_numbers(cls, value: int | list[int] | None) -> int | list[int] | None:
        numbers = [value] if isinstance(value, int) else value
        if numbers is not None and (not numbers or min(numbers) < 0):
            raise ValueError("must be layer numbers, from 0 up, and at least one of them")
        return value

    @field_validator("layers_pattern")
    @classmethod
    def _layer_names(cls, value: str | list[str] | None) -> str | list[str] | None:
        names = [value] if isinstance(value, str) else value
        if names is not None and not (names and all(names)):
            raise ValueError("must name at least one list of layers")
        for name in names or []:
            _check_expression(name)
        return value

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _patterns(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            _check_expression(key)
        return value

    @field_validator("init_lora_weights")
    @classmethod
    def _start(cls, value: bool | str) -> bool | str:
        if (
            value is not True
            and value not in ("gaussian", "orthogonal", "pissa")
            and not _PISSA_ROUNDS.match(str(value))
        ):
            raise ValueError(
                "is no start that Loray has; allowed: true, gaussian, orthogonal, pissa, pissa_niter_<n> (n from 1)"
            )
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> LoraConfig:
        if problem := self._conflict():
            raise ValueError(problem)
        return self

    def _conflict(self) -> str | None:
        """What of the fields does not go together, in words."""
        if (
            isinstance(self.target_modules, str)
            and self.target_modules != "all-linear"
            and self.layers_to_transform is not None
        ):
            return "layers_to_transform does not go with a target_modules that is a regular expression; give a list"
        if self.layers_pattern is not None and self.layers_to_transform is None:
            return "layers_pattern needs layers_to_transform; give the numbers of the layers"
        if self.peft_type == "VERA":
            return self._vera_conflict()
        if strange := self._changed("vera_dropout", "d_initial", "projection_prng_key", "save_projection"):
            return f"{strange} belongs to peft_type VERA; leave it out, or set peft_type: VERA"
        if self.init_adapter is not None and self.init_lora_weights is not True:
            return f"init_lora_weights {self.init_lora_weights} does not go with init_adapter, which gives the start"
        if self.use_dora and self.starts_from_base:
            return (
                f"use_dora does not go with init_lora_weights {self.init_lora_weights}: PEFT's conversion of the "
                f"result to a plain adapter would lose DoRA's magnitudes"
            )
        odd = [rank for rank in (self.r, *self.rank_pattern.values()) if rank % 2]
        if self.init_lora_weights == "orthogonal" and odd:
            return f"init_lora_weights orthogonal needs even ranks; {odd[0]} is odd"
        return None

    def _vera_conflict(self) -> str | None:
        own = ("lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "use_dora", "init_lora_weights")
        if strange := self._changed(*own, "exclude_modules"):
            return f"{strange} is not a part of VeRA; leave it out, or set peft_type: LORA"
        if self._changed("lora_dropout"):
            return "lora_dropout is called vera_dropout with peft_type VERA; rename it"
        if "r" not in self.model_fields_set:
            return "r is missing; peft_type VERA trains r values per layer and needs a larger one (PEFT's default: 256)"
        return None

    def _changed(self, *fields: str) -> str | None:
        """The first of some fields that does not have its default."""
        known = type(self).model_fields
        return next((name for name in fields if getattr(self, name) != known[name].default), None)

    @property
    def dropout(self) -> float:
        """Dropout on the adapter's input, whatever its kind calls it."""
        return self.vera_dropout if self.peft_type == "VERA" else self.lora_dropout

    @property
    def starts_from_base(self) -> bool:
        """Whether the start is taken out of the base weight (PiSSA)."""
        return isinstance(self.init_lora_weights, str) and self.init_lora_weights.startswith("pissa")

    @property
    def pissa_rounds(self) -> int | None:
        """Rounds of PiSSA's approximate decomposition; None makes the exact one."""
        match = _PISSA_ROUNDS.match(str(self.init_lora_weights))
        return int(match[1]) if match else None

    def rank_of(self, name: str) -> int:
        """Rank of the update of one module."""
        return pattern_value(self.rank_pattern, name, self.r)

    def alpha_of(self, name: str) -> float:
        """The lora_alpha of one module."""
        return pattern_value(self.alpha_pattern, name, self.lora_alpha)

    def scaling_of(self, name: str) -> float:
        """The factor on the update of one module."""
        if self.peft_type == "VERA":
            return 1.0
        rank = self.rank_of(name)
        return self.alpha_of(name) / (math.sqrt(rank) if self.use_rslora else rank)


def pattern_value(patterns: Mapping[str, Number], name: str, default: Number) -> Number:
    """The value of the first pattern that fits the end of a module name, as PEFT matches them."""
    fitting = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name))
    return next(fitting, default)


def _check_expression(text: str) -> None:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None


class TrainingConfig(Strict):
    """How one adapter is trained, in the words of `transformers.TrainingArguments`."""

    objective: Literal["sft", "dpo", "cpo", "orpo"] = Field(
        "sft", description="What is learned: `sft` from samples; `dpo`, `cpo` and `orpo` from preference pairs."
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


class AdapterSpec(Strict):
    """One adapter to train, all paths absolute: what the orchestrator hands to an actor."""

    job_id: str
    name: str
    base_model: str
    dataset: DatasetConfig
    lora: LoraConfig
    training: TrainingConfig
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
