"""What an adapter takes in bytes, and the names and shapes in its file: from configurations alone."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_actor.adapters.kinds import kind_of
from gpu_actor.adapters.kinds.base import Shape
from gpu_actor.adapters.kinds.lora import Lora
from gpu_actor.adapters.layer_plan import LayerPlan
from gpu_actor.adapters.targets import plan_layers
from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.footprint import ADAPTER_DTYPE_BYTES
from gpu_actor.contract.lora_config import LoraConfig

_COPY_BYTES = 2  # of a value in a group's copies, where the base computes in 16 bits


def file_shapes(lora: LoraConfig, plans: Sequence[LayerPlan], *, shared: bool) -> dict[str, Shape]:
    """Names and shapes in `adapter_model.safetensors`.

    Args:
        lora: The adapter.
        plans: The layers that it changes.
        shared: Whether the tensors that all layers share are in the file.
    """
    kind = kind_of(lora)
    shapes = {tensor_name(plan.name, spec.name): spec.shape for plan in plans for spec in kind.in_file(plan)}
    if shared:
        shapes |= {shared_name(name): shape for name, shape in kind.shared_shapes(plans).items()}
    return shapes


def tensor_name(module: str, tensor: str) -> str:
    """PEFT's name of a module's tensor in `adapter_model.safetensors`."""
    return f"base_model.model.{module}.{tensor}"


def shared_name(tensor: str) -> str:
    """PEFT's name there of a tensor that all layers share."""
    return f"base_model.{tensor}"


def adapter_parameters(base: BaseDescription, lora: LoraConfig) -> int:
    """Number of trainable values of an adapter."""
    kind = kind_of(lora)
    return sum(spec.values for plan in plan_layers(base, lora) for spec in kind.trained(plan))


def frozen_values(base: BaseDescription, lora: LoraConfig) -> int:
    """Number of values that an adapter holds or works with, and does not train."""
    kind, plans = kind_of(lora), plan_layers(base, lora)
    return kind.frozen_values(plans) + kind.working_values(plans)


def is_grouped(lora: LoraConfig) -> bool:
    """Whether a GPU computes an adapter together with others of its shape: plain LoRA."""
    return type(kind_of(lora)) is Lora


def adapter_bytes(base: BaseDescription, lora: LoraConfig) -> int:
    """Bytes of an adapter in training: weights, gradients, the two moments of AdamW, and what is not trained."""
    return ADAPTER_DTYPE_BYTES * (4 * adapter_parameters(base, lora) + frozen_values(base, lora))


def copy_bytes(base: BaseDescription, lora: LoraConfig) -> int:
    """Bytes of the copies of weights and gradients that a GPU makes for a shared batch, where the base has 16 bits."""
    return 2 * _COPY_BYTES * adapter_parameters(base, lora) if is_grouped(lora) else 0


def adapter_activation_bytes(base: BaseDescription, lora: LoraConfig, tokens: int, device: str = "cpu") -> int:
    """Bytes that an adapter's share of the linear layers keeps for the backward of `tokens` tokens.

    What its kind keeps in fp32, and with dropout a bool per input; a GPU (`cuda`) keeps none of plain LoRA.
    """
    kind, masks = kind_of(lora), lora.dropout > 0 and not (device == "cuda" and is_grouped(lora))
    per_token = 0
    for plan in plan_layers(base, lora):
        per_token += 4 * kind.kept_values(plan) + (plan.in_features if masks else 0)
    return tokens * per_token
