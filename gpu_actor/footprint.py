"""Bytes of a job on a base model, from configurations alone.

The figures are a prior: they are derived from shapes, not measured. Admission uses them before a job has run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gpu_actor.config import TrainingConfig

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
    """What must be known of a base model to check and size a job. `linears` leaves out the output head."""

    ref: str
    model_type: str
    linears: tuple[LinearShape, ...]
    hidden_size: int
    num_layers: int
    vocab_size: int
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, so that it can travel and be cached as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BaseDescription:
        """The inverse of `to_dict`."""
        return cls(**{**data, "linears": tuple(LinearShape(**linear) for linear in data["linears"])})


def base_bytes(base: BaseDescription, dtype_bytes: int = 4) -> int:
    """Bytes of the frozen base model's weights."""
    return base.parameters * dtype_bytes


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
    """Most tokens that one micro-batch of a job can have."""
    return training.per_device_train_batch_size * training.cutoff_len
