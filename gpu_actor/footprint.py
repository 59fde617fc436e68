"""Bytes of a job on a base model, from configurations alone.

The figures are a prior: they are derived from shapes, not measured. Admission uses them before a job has run.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpu_actor.config import LoraConfig, TrainingConfig
from gpu_actor.errors import AdapterError, InvalidJobError

DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
ADAPTER_DTYPE_BYTES = 4  # adapters, their gradients and moments are fp32 whatever the base is
# Tokens of a shared batch: more of them no longer raise the speed much, only the memory.
DEFAULT_TOKEN_BUDGET = {"cpu": 1024, "cuda": 8192}
# Tokens of a micro-batch: a larger one is run in parts, by whole samples, so that memory follows from this number
# and not from batch size times the longest sample. An adapter's rounding depends on it: it is no setting.
MICRO_BATCH_CAP = {"cpu": 1024, "cuda": 8192}
LOSS_CHUNK = 256  # positions whose logits exist at one time
_SHOWN_NAMES = 12


@dataclass(frozen=True)
class LinearShape:
    """One linear layer of a base model: module name and sizes."""

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Activations:
    """What the forward of a base model keeps for its backward, in fp32; see `activation_probe`."""

    token_bytes: float  # per token
    square_bytes: float = 0.0  # per squared sequence length: attention that is not fused
    head_bytes: float = 0.0  # per position whose logits are made, beside the logits


@dataclass(frozen=True)
class BaseDescription:
    """What must be known of a base model to check and size a job. `linears` leaves out the output head."""

    ref: str
    model_type: str
    linears: tuple[LinearShape, ...]
    hidden_size: int
    num_layers: int
    vocab_size: int
    parameters: int
    activations: Activations | None = None  # None: nobody has counted

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, so that it can travel and be cached as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BaseDescription:
        """The inverse of `to_dict`."""
        linears = tuple(LinearShape(**linear) for linear in data["linears"])
        counted = data.get("activations")
        return cls(**{**data, "linears": linears, "activations": Activations(**counted) if counted else None})


def match_names(names: Iterable[str], target_modules: str | list[str]) -> list[str]:
    """The module names that `target_modules` selects, by PEFT's rules, in the model's order.

    Raises:
        InvalidJobError: A target matches nothing; the message lists the names that exist.
    """
    names = list(names)
    if target_modules == "all-linear":
        return names
    if isinstance(target_modules, str):
        matched = [name for name in names if re.fullmatch(target_modules, name)]
        missing = [] if matched else [target_modules]
    else:
        ends = {target: [n for n in names if n == target or n.endswith("." + target)] for target in target_modules}
        missing = [target for target, found in ends.items() if not found]
        chosen = {name for found in ends.values() for name in found}
        matched = [name for name in names if name in chosen]
    if missing:
        endings = sorted({name.rsplit(".", 1)[-1] for name in names})
        shown = ", ".join(endings[:_SHOWN_NAMES]) + (" ..." if len(endings) > _SHOWN_NAMES else "")
        raise InvalidJobError(
            f"lora.target_modules: {', '.join(map(repr, missing))} matches no linear layer of the base model; "
            f"it has {shown} (whole names look like {names[0]!r}); name some of these or write all-linear"
        )
    return matched


def match_targets(base: BaseDescription, target_modules: str | list[str]) -> list[LinearShape]:
    """The linear layers of `base` that an adapter with these targets changes.

    Raises:
        InvalidJobError: A target matches nothing.
    """
    chosen = set(match_names([linear.name for linear in base.linears], target_modules))
    return [linear for linear in base.linears if linear.name in chosen]


def adapter_parameters(base: BaseDescription, lora: LoraConfig) -> int:
    """Number of trainable values of an adapter."""
    return sum(lora.r * (s.in_features + s.out_features) for s in match_targets(base, lora.target_modules))


def adapter_bytes(base: BaseDescription, lora: LoraConfig, dtype_bytes: int = ADAPTER_DTYPE_BYTES) -> int:
    """Bytes of an adapter in training: weights, gradients and the two moments of AdamW."""
    return 4 * dtype_bytes * adapter_parameters(base, lora)


def base_bytes(base: BaseDescription, dtype_bytes: int = 4) -> int:
    """Bytes of the frozen base model's weights."""
    return base.parameters * dtype_bytes


def activation_bytes(
    base: BaseDescription, tokens: int, dtype_bytes: int = 4, *, checkpointing: bool = False, longest: int = 512
) -> int:
    """Peak bytes of activations and logits of one shared batch of `tokens` tokens.

    They are highest between forward and backward: all that the layers keep, and the logits of a chunk. With
    checkpointing only each layer's input stays, and one layer at a time is whole.

    Args:
        base: The base model.
        tokens: Of the shared batch.
        dtype_bytes: Of the base model's numbers.
        checkpointing: Whether gradient checkpointing is on.
        longest: Tokens of the longest sequence, for attention that keeps a square of it.
    """
    layers = max(base.num_layers, 1)
    kept = _kept_bytes(base, tokens, longest) * dtype_bytes / 4
    if checkpointing:
        kept = tokens * base.hidden_size * layers * dtype_bytes + kept / layers
    head = base.activations.head_bytes if base.activations else 0.0
    logits = min(tokens, LOSS_CHUNK) * (3 * base.vocab_size * 4 + head)
    return math.ceil(kept + logits)


def _kept_bytes(base: BaseDescription, tokens: int, longest: int) -> float:
    """What the layers keep in fp32: as counted, else the inputs and outputs of the linear layers.

    The inputs that sibling layers share are counted once for each: that covers norms and residuals.
    """
    if base.activations is None:
        return 4.0 * tokens * sum(linear.in_features + linear.out_features for linear in base.linears)
    counted = base.activations
    return tokens * counted.token_bytes + tokens * min(tokens, longest) * counted.square_bytes


def adapter_activation_bytes(base: BaseDescription, lora: LoraConfig, tokens: int) -> int:
    """Bytes that an adapter's own part of the linear layers keeps: x A^T in fp32, and a bool per input with dropout."""
    masks = lora.lora_dropout > 0
    targets = match_targets(base, lora.target_modules)
    return tokens * sum(4 * lora.r + (target.in_features if masks else 0) for target in targets)


def worst_micro_batch_tokens(training: TrainingConfig, cap: int, longest: int | None = None) -> int:
    """Most tokens that one micro-batch of a job can have, as it is run.

    Args:
        training: Of the job.
        cap: Most tokens of a micro-batch on the actor (`MICRO_BATCH_CAP`); a single longer sample goes alone.
        longest: Tokens of the job's longest sample; None: not known yet, so cutoff_len.
    """
    sample = min(longest or training.cutoff_len, training.cutoff_len)
    return min(training.per_device_train_batch_size * sample, max(cap, sample))


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """Names, dtypes and shapes of a safetensors file, without its data.

    Raises:
        AdapterError: The file is not safetensors or is cut short.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > 100_000_000:
                raise ValueError("header too long")
            header = json.loads(file.read(length))
            if not isinstance(header, dict):
                raise ValueError("header is no object")
    except (OSError, ValueError, struct.error) as error:
        raise AdapterError(f"{path}: not a readable safetensors file ({error}); copy or export it again") from None
    header.pop("__metadata__", None)
    return header


def check_adapter_fits(base: BaseDescription, lora: LoraConfig) -> None:
    """Check that `lora.init_adapter` has exactly the tensors that this base, rank and these targets call for.

    Raises:
        AdapterError: A tensor is missing, superfluous or of another shape; the message names the first of them.
    """
    if lora.init_adapter is None:
        return
    _check_same_scale(lora)
    path = Path(lora.init_adapter) / "adapter_model.safetensors"
    found = {name: tuple(entry["shape"]) for name, entry in read_safetensors_header(path).items()}
    wanted: dict[str, tuple[int, ...]] = {}
    for linear in match_targets(base, lora.target_modules):
        wanted[tensor_name(linear.name, "A")] = (lora.r, linear.in_features)
        wanted[tensor_name(linear.name, "B")] = (linear.out_features, lora.r)
    for name, shape in wanted.items():
        if found.get(name) != shape:
            has = f"has shape {list(found[name])}" if name in found else "is missing"
            raise AdapterError(
                f"lora.init_adapter: {lora.init_adapter} does not fit {base.ref}: {name} {has}, wanted {list(shape)} "
                f"(r={lora.r}, target_modules={lora.target_modules!r}); use the base model, rank and targets that "
                f"the adapter was trained with"
            )
    extra = sorted(set(found) - set(wanted))
    if extra:
        raise AdapterError(
            f"lora.init_adapter: {lora.init_adapter} has {len(extra)} tensors that this job would not train, such as "
            f"{extra[0]}; list their modules in lora.target_modules"
        )


def _check_same_scale(lora: LoraConfig) -> None:
    """An adapter that is scaled otherwise than it was trained would start as another adapter, without a word."""
    path = Path(str(lora.init_adapter)) / "adapter_config.json"
    try:
        saved = json.loads(path.read_text("utf-8"))
        found = {"lora_alpha": saved["lora_alpha"], "use_rslora": saved.get("use_rslora", False)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{path}: not a readable adapter configuration ({error}); export the adapter again"
        ) from None
    for field, value in found.items():
        if value != getattr(lora, field):
            raise AdapterError(
                f"lora.init_adapter: {lora.init_adapter} was trained with {field} {value}, this job has "
                f"{getattr(lora, field)}; set lora.{field}: {str(value).lower()}"
            )


def tensor_name(module: str, which: str) -> str:
    """PEFT's name of a tensor in `adapter_model.safetensors`: `which` is `A` or `B`."""
    return f"base_model.model.{module}.lora_{which}.weight"
