"""Bytes of a job on a base model, from configurations alone.

The figures are a prior: they are derived from shapes, not measured. Admission uses them before a job has run.
"""

from __future__ import annotations

import math

from gpu_actor.contract.config import Quantization, TrainingConfig
from gpu_actor.contract.description import Activations, BaseDescription
from gpu_actor.contract.objective_fields import PAIR_OBJECTIVES

DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
ADAPTER_DTYPE_BYTES = 4  # adapters, their gradients and moments are fp32 whatever the base is
# Tokens of a shared batch: more of them no longer raise the speed much, only the memory. A GPU may have room for fewer.
DEFAULT_TOKEN_BUDGET = {"cpu": 512, "cuda": 8192}
_LEAST_TOKEN_BUDGET = 128  # with fewer a step is all fixed cost
# Tokens of a micro-batch: a larger one is run in parts, by whole samples, so that memory follows from this number
# and not from batch size times the longest sample. An adapter's rounding depends on it: it is no setting.
MICRO_BATCH_CAP = {"cpu": 1024, "cuda": 2048}
LOSS_CHUNK = 256  # positions whose logits exist at one time
FORWARD_WORK = 0.5  # of a token that is only run forward, in trained tokens: a frozen weight costs as much backward


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
    kept = _kept_bytes(base, tokens, longest, dtype_bytes)
    if checkpointing:
        kept = tokens * base.hidden_size * layers * dtype_bytes + kept / layers
    counted = _counted(base, dtype_bytes)
    logits = min(tokens, LOSS_CHUNK) * (3 * base.vocab_size * 4 + (counted.head_bytes if counted else 0.0))
    return math.ceil(kept + logits)


def _counted(base: BaseDescription, dtype_bytes: int) -> Activations | None:
    """What was counted, for numbers of so many bytes: of two bytes their own count, of others that of fp32, scaled."""
    counted = base.activations
    if counted is None or dtype_bytes == 4:
        return counted
    if dtype_bytes == 2 and counted.half is not None:
        return counted.half
    scale = dtype_bytes / 4
    return Activations(counted.token_bytes * scale, counted.square_bytes * scale, counted.head_bytes)


def _kept_bytes(base: BaseDescription, tokens: int, longest: int, dtype_bytes: int) -> float:
    """What the layers keep: as counted, else the inputs and outputs of the linear layers.

    The inputs that sibling layers share are counted once for each: that covers norms and residuals.
    """
    counted = _counted(base, dtype_bytes)
    if counted is None:
        return dtype_bytes * tokens * sum(linear.in_features + linear.out_features for linear in base.linears)
    return tokens * counted.token_bytes + tokens * min(tokens, longest) * counted.square_bytes


def first_token_budget(
    base: BaseDescription,
    device: str,
    room: float,
    dtype_bytes: int = 4,
    *,
    checkpointing: bool = False,
) -> int:
    """Tokens of a shared batch on an actor of which nothing was measured: what there is room for, up to the default.

    A token counts with one byte more for each input of each layer: room for the adapters, or for the masks of dropout
    of those kinds that keep them.

    Args:
        base: The base model.
        device: `cpu` or `cuda`. On a CPU it is the default: there the actor makes its batches smaller as it goes.
        room: Bytes beside the loaded base model that shared batches may take.
        dtype_bytes: Of the base model's numbers.
        checkpointing: Whether gradient checkpointing is on.
    """
    most = DEFAULT_TOKEN_BUDGET[device]
    if device == "cpu":
        return most
    start, end = 2 * LOSS_CHUNK, 4 * LOSS_CHUNK  # past one chunk the logits no longer grow
    at, further = (activation_bytes(base, n, dtype_bytes, checkpointing=checkpointing) for n in (start, end))
    token = (further - at) / (end - start)
    beside = sum(linear.in_features for linear in base.linears) / (max(base.num_layers, 1) if checkpointing else 1)
    logits = at - token * start
    return max(_LEAST_TOKEN_BUDGET, min(most, int((room - logits) / (token + beside))))


def worst_micro_batch_tokens(training: TrainingConfig, cap: int, longest: int | None = None) -> int:
    """Most tokens that one micro-batch of a job can have, as it is run.

    Args:
        training: Of the job.
        cap: Most tokens of a micro-batch on the actor (`MICRO_BATCH_CAP`); a single longer sample goes alone.
        longest: Tokens of the job's longest sample, both sides of a pair together; None: not known yet, so what
            cutoff_len allows.
    """
    most = training.cutoff_len * (2 if training.objective in PAIR_OBJECTIVES else 1)
    sample = min(longest or most, most)
    return min(training.per_device_train_batch_size * sample, max(cap, sample))


def token_work(training: TrainingConfig) -> float:
    """What a real token of an optimizer step costs with all that is run beside it, in trained tokens.

    KTO runs about as many tokens again, of its mismatched pairs, forward under the policy and under the reference.
    """
    return 1 + (2 * FORWARD_WORK if training.objective == "kto" else 0)
