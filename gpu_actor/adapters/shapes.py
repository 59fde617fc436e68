"""Names and shapes of the tensors of an adapter, from configurations alone: in training, in its file, in bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gpu_actor.adapters.targets import LayerPlan, plan_layers
from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.footprint import ADAPTER_DTYPE_BYTES
from gpu_actor.contract.lora_config import LoraConfig

Shape = tuple[int, ...]
PROJECTIONS = ("vera_A", "vera_B")


@dataclass(frozen=True)
class TensorSpec:
    """One trained tensor of one layer.

    Attributes:
        name: PEFT's name of it: lora_A, lora_B, lora_magnitude_vector, vera_lambda_b, vera_lambda_d.
        shape: Its sizes.
    """

    name: str
    shape: Shape

    @property
    def fast(self) -> bool:
        """Whether LoRA+ (arXiv 2402.12354) trains it at the higher rate: every B, and every vector."""
        return self.name == "lora_B" or len(self.shape) == 1

    @property
    def values(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def trained_tensors(lora: LoraConfig, layer: LayerPlan) -> tuple[TensorSpec, ...]:
    """What is trained in one layer, in the order in which `AdapterWeights.layers` holds it."""
    if lora.peft_type == "VERA":
        return TensorSpec("vera_lambda_b", (layer.out_features,)), TensorSpec("vera_lambda_d", (layer.rank,))
    pair = (
        TensorSpec("lora_A", (layer.rank, layer.in_features)),
        TensorSpec("lora_B", (layer.out_features, layer.rank)),
    )
    return (*pair, TensorSpec("lora_magnitude_vector", (layer.out_features,))) if lora.use_dora else pair


def projection_shapes(lora: LoraConfig, layers: Sequence[LayerPlan]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of VeRA's shared matrices A and B: as large as the largest layer asks for."""
    return (lora.r, max(s.in_features for s in layers)), (max(s.out_features for s in layers), lora.r)


def file_shapes(lora: LoraConfig, layers: Sequence[LayerPlan], *, projections: bool) -> dict[str, Shape]:
    """Names and shapes in `adapter_model.safetensors` of an adapter that does not start from the base.

    Args:
        lora: The adapter.
        layers: What it changes.
        projections: Whether VeRA's shared matrices are in the file.
    """
    shapes = {tensor_name(s.name, spec.name): spec.shape for s in layers for spec in trained_tensors(lora, s)}
    if lora.peft_type == "VERA" and projections:
        shapes |= {
            f"base_model.{name}": shape
            for name, shape in zip(PROJECTIONS, projection_shapes(lora, layers), strict=True)
        }
    return shapes


def tensor_name(module: str, tensor: str) -> str:
    """PEFT's name of a module's tensor in `adapter_model.safetensors`."""
    suffix = ".weight" if tensor in ("lora_A", "lora_B") else ""
    return f"base_model.model.{module}.{tensor}{suffix}"


def adapter_parameters(base: BaseDescription, lora: LoraConfig) -> int:
    """Number of trainable values of an adapter."""
    return sum(spec.values for s in plan_layers(base, lora) for spec in trained_tensors(lora, s))


def frozen_values(base: BaseDescription, lora: LoraConfig) -> int:
    """Number of values that an adapter holds and does not train: VeRA's shared matrices, PiSSA's start.

    DoRA keeps none, but makes the adapted weight of one layer at a time, to measure it: the largest is counted.
    """
    layers = plan_layers(base, lora)
    if lora.peft_type == "VERA":
        return sum(math.prod(shape) for shape in projection_shapes(lora, layers))
    if lora.starts_from_base:
        return sum(spec.values for s in layers for spec in trained_tensors(lora, s))
    return max(s.in_features * s.out_features for s in layers) if lora.use_dora else 0


def adapter_bytes(base: BaseDescription, lora: LoraConfig, dtype_bytes: int = ADAPTER_DTYPE_BYTES) -> int:
    """Bytes of an adapter in training: weights, gradients, the two moments of AdamW, and what is frozen."""
    return dtype_bytes * (4 * adapter_parameters(base, lora) + frozen_values(base, lora))


def adapter_activation_bytes(base: BaseDescription, lora: LoraConfig, tokens: int) -> int:
    """Bytes that an adapter's own part of the linear layers keeps for the backward of `tokens` tokens.

    The low-rank products in fp32, a bool per input with dropout, and with DoRA the whole adapted output.
    """
    per_token = 0
    for layer in plan_layers(base, lora):
        masks = layer.in_features if lora.dropout > 0 else 0
        per_token += 4 * (layer.rank + (layer.out_features if lora.use_dora else 0)) + masks
    return tokens * per_token
