"""Bytes of a job on a base model, from configurations alone.

The figures are a prior: they are derived from shapes, not measured. Admission uses them before a job has run.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from gpu_actor.config import Quantization, TrainingConfig

DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
ADAPTER_DTYPE_BYTES = 4  # adapters, their gradients and moments are fp32 whatever the base is
# Tokens of a shared batch: more of them no longer raise the speed much, only the memory.
DEFAULT_TOKEN_BUDGET = {"cpu": 1024, "cuda": 8192}
# Tokens of a micro-batch: a larger one is run in parts, by whole samples, so that memory follows from this number
# and not from batch size times the longest sample. An adapter's rounding depends on it: it is no setting.
MICRO_BATCH_CAP = {"cpu": 1024, "cuda": 8192}
LOSS_CHUNK = 256  # positions whose logits exist at one time


@dataclass(frozen=True)
class LinearShape:
    """One linear layer of a base model: module name and sizes."""

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class BaseDescription:
    """What must be known of a base model to check and size a job.

    `linears` leaves out the output head. `experts` names weights of three dimensions, which mixtures of experts have:
    they are no linear layers, and no adapter can change them.
    """

    ref: str
    model_type: str
    linears: tuple[LinearShape, ...]
    hidden_size: int
    num_layers: int
    vocab_size: int
    parameters: int
    experts: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, so that it can travel and be cached as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BaseDescription:
        """The inverse of `to_dict`."""
        return cls(
            **{
                **data,
                "linears": tuple(LinearShape(**linear) for linear in data["linears"]),
                "experts": tuple(data.get("experts", ())),
            }
        )


def base_bytes(base: BaseDescription, dtype_bytes: int = 4, quantization: Quantization | None = None) -> int:
    """Bytes of the frozen base model: its weights, and of a quantised one its largest layer's dense weight as well.

    Layers are dequantised one at a time, so one dense weight exists beside all quantised ones.
    """
    stored = weight_bytes(base, dtype_bytes, quantization)
    if quantization is None:
        return stored
    return stored + max(linear.in_features * linear.out_features for linear in base.linears) * dtype_bytes


def weight_bytes(base: BaseDescription, dtype_bytes: int = 4, quantization: Quantization | None = None) -> int:
    """Bytes of the base model's weights; a quantised base keeps its head, embeddings, norms and biases in full."""
    if quantization is None:
        return base.parameters * dtype_bytes
    sizes = [(linear.in_features, linear.out_features) for linear in base.linears]
    plain = base.parameters - sum(columns * rows for columns, rows in sizes)
    return plain * dtype_bytes + sum(_QUANTIZED_BYTES[quantization](*size) for size in sizes)


def _nf4_bytes(columns: int, rows: int) -> int:
    """Half a byte a weight; one byte for the scale of 64 weights; one float for 256 scales; two code books."""
    blocks = math.ceil(columns * rows / 64)
    code_books = 4 * 16 + 4 * 256 + 4  # of weights, of scales, and the scales' offset
    return math.ceil(columns * rows / 2) + blocks + 4 * math.ceil(blocks / 256) + code_books


def _int8_bytes(columns: int, rows: int) -> int:
    """One byte a weight, one float for the scale of a row."""
    return columns * rows + 4 * rows


_QUANTIZED_BYTES = {"nf4": _nf4_bytes, "int8": _int8_bytes}


def activation_bytes(base: BaseDescription, tokens: int, dtype_bytes: int = 4, *, checkpointing: bool = False) -> int:
    """Peak bytes of activations and logits of one shared batch of `tokens` tokens.

    A layer keeps the inputs and outputs of its linear layers (inputs shared by sibling layers are counted once per
    sibling: an upper estimate that also covers norms and residuals). With checkpointing only each layer's input
    stays, and one layer at a time is whole.
    """
    per_token = sum(linear.in_features + linear.out_features for linear in base.linears)
    layers = max(base.num_layers, 1)
    if checkpointing:
        per_token = layers * base.hidden_size + per_token // layers
    logits = 3 * min(tokens, LOSS_CHUNK) * base.vocab_size * 4
    return tokens * per_token * dtype_bytes + logits


def worst_micro_batch_tokens(training: TrainingConfig) -> int:
    """Most tokens that one micro-batch of a job can have; a preference pair has two sides."""
    sides = 1 if training.objective == "sft" else 2
    return sides * training.per_device_train_batch_size * training.cutoff_len
