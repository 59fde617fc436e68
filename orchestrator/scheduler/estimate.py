"""Bytes that jobs and actors need, predicted from configurations alone.

An actor needs its base model, the activations of a shared batch at its token budget, and a reserve. A job adds its
adapter, and the further activations of its worst micro-batch where that is larger than the budget: such a micro-batch
goes alone, so of several such jobs on one actor only the largest excess counts.
"""

from __future__ import annotations

from gpu_actor import footprint
from gpu_actor.footprint import BaseDescription
from orchestrator.scheduler.view import ActorShape

# Interpreter and libraries on a CPU; context, kernels and fragmentation on an accelerator.
RESERVE_BYTES = {"cpu": 640 * 2**20, "cuda": 1024 * 2**20}


def fixed_bytes(base: BaseDescription, shape: ActorShape) -> int:
    """Bytes of an actor without any job."""
    return (
        footprint.base_bytes(base, shape.dtype_bytes)
        + _activations(base, shape.token_budget, shape)
        + RESERVE_BYTES[device_kind(shape.device)]
    )


def excess_bytes(base: BaseDescription, worst_tokens: int, shape: ActorShape) -> int:
    """Bytes of activations that a micro-batch of `worst_tokens` needs beyond those of the token budget."""
    if worst_tokens <= shape.token_budget:
        return 0
    return _activations(base, worst_tokens, shape) - _activations(base, shape.token_budget, shape)


def device_kind(device: str) -> str:
    """`cuda` of `cuda:1`."""
    return device.partition(":")[0]


def in_words(size: int) -> str:
    """Bytes as a person reads them."""
    if size >= 100 * 2**20:
        return f"{size / 2**30:.1f} GiB"
    return f"{size / 2**20:.1f} MiB"


def _activations(base: BaseDescription, tokens: int, shape: ActorShape) -> int:
    return footprint.activation_bytes(base, tokens, shape.dtype_bytes, checkpointing=shape.checkpointing)
