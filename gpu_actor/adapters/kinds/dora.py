"""DoRA (arXiv 2402.09353): LoRA that trains the length of every output's weights apart from their direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpu_actor.adapters.kinds.base import AdaptedLayer, TensorSpec
from gpu_actor.adapters.kinds.lora import Lora
from gpu_actor.adapters.layer_plan import LayerPlan
from gpu_actor.contract.lora_config import LoraConfig

if TYPE_CHECKING:
    import torch
    from torch import nn


class Dora(Lora):
    """DoRA: LoRA's A and B, and the magnitudes [out]."""

    @classmethod
    def matches(cls, lora: LoraConfig) -> bool:
        """`use_dora` is set."""
        return lora.use_dora

    def trained(self, plan: LayerPlan) -> tuple[TensorSpec, ...]:
        """A, B and the magnitudes."""
        return (*super().trained(plan), TensorSpec("lora_magnitude_vector", (plan.out_features,), fast=True))

    def start(self, layer: AdaptedLayer, generator: torch.Generator, seed: int) -> None:
        """As LoRA; the magnitudes are the lengths as they are."""
        super().start(layer, generator, seed)
        a, b, magnitude = layer.trained
        magnitude.copy_(weight_norm(a, b, layer.plan.scaling, layer.base))

    def merged(self, layer: AdaptedLayer, weight: torch.Tensor) -> torch.Tensor:
        """m / ||W + s B A|| times W + s B A, output by output."""
        import torch

        adapted = super().merged(layer, weight)
        factor = layer.trained[2] / torch.linalg.vector_norm(adapted, dim=1)
        return adapted.mul_(factor[:, None])

    def working_values(self, plans: Sequence[LayerPlan]) -> int:
        """The adapted weight, which is made to be measured."""
        return max(plan.in_features * plan.out_features for plan in plans)

    def kept_values(self, plan: LayerPlan) -> int:
        """The adapted output as well."""
        return plan.rank + plan.out_features


def weight_norm(a: torch.Tensor, b: torch.Tensor, scaling: float, base: nn.Module) -> torch.Tensor:
    """Length of every output's weights, adapter included: the norm over the inputs of W + s B A, as [out].

    Args:
        a: A [r, in].
        b: B [out, r].
        scaling: s.
        base: The linear layer with the weight W.
    """
    import torch

    from gpu_actor.loading.quantization import dense_weight

    adapted = torch.mm(b, a).mul_(scaling)
    adapted += dense_weight(base)  # a weight of fewer bits becomes no copy of its own
    return torch.linalg.vector_norm(adapted, dim=1)  # type: ignore[no-any-return]
