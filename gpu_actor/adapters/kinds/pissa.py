"""PiSSA (arXiv 2404.02948): LoRA that starts from the largest singular values of the base weight.

PEFT takes the start A0, B0 out of the base. Here the base is shared and stays as it is: the start is held frozen, and
its update is subtracted. Saved, the adapter becomes a plain one of twice the rank, as PEFT converts it:

    B A - B0 A0 = [B | -B0] [A ; A0]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gpu_actor.adapters.kinds.base import AdaptedLayer, TensorSpec
from gpu_actor.adapters.kinds.lora import Lora
from gpu_actor.adapters.layer_plan import LayerPlan
from gpu_actor.contract.errors import InvalidJobError
from gpu_actor.contract.lora_config import LoraConfig

if TYPE_CHECKING:
    import torch


class Pissa(Lora):
    """PiSSA: LoRA's A and B, and their start, frozen."""

    @classmethod
    def matches(cls, lora: LoraConfig) -> bool:
        """`init_lora_weights` is pissa or pissa_niter_<n>."""
        return lora.starts_from_base

    def check(self, plan: LayerPlan) -> None:
        """A weight has no more singular values than its smaller side."""
        if plan.rank > min(plan.in_features, plan.out_features):
            raise InvalidJobError(
                f"lora.init_lora_weights: {self.lora.init_lora_weights} cannot give a rank of {plan.rank} to "
                f"{plan.name} ({plan.in_features} inputs, {plan.out_features} outputs); lower lora.r"
            )

    def make_frozen(
        self,
        plan: LayerPlan,  # noqa: ARG002
        trained: tuple[torch.Tensor, ...],
        shared: Mapping[str, torch.Tensor],  # noqa: ARG002
    ) -> tuple[torch.Tensor, ...]:
        """The start A0 and B0; `start` or `from_file` fills them."""
        return tuple(tensor.new_zeros(tensor.shape) for tensor in trained)

    def start(self, layer: AdaptedLayer, generator: torch.Generator, seed: int) -> None:  # noqa: ARG002
        """The part of the base weight with its largest singular values."""
        from gpu_actor.loading.quantization import dense_weight

        values = principal_pair(dense_weight(layer.base), layer.plan, self.lora.pissa_rounds, seed)
        for tensor, frozen, value in zip(layer.trained, layer.frozen, values, strict=True):
            tensor.copy_(value)
            frozen.copy_(value)

    def frozen_values(self, plans: Sequence[LayerPlan]) -> int:
        """As many as are trained."""
        return sum(spec.values for plan in plans for spec in self.trained(plan))

    def as_saved(self) -> LoraConfig:
        """Twice the rank and alpha (by rsLoRA's scale: alpha times the root of 2), so that the scale stays."""
        factor = math.sqrt(2.0) if self.lora.use_rslora else 2.0
        changes = {
            "r": 2 * self.lora.r,
            "lora_alpha": factor * self.lora.lora_alpha,
            "rank_pattern": {key: 2 * rank for key, rank in self.lora.rank_pattern.items()},
            "alpha_pattern": {key: factor * alpha for key, alpha in self.lora.alpha_pattern.items()},
            "init_lora_weights": True,
        }
        return self.lora.model_copy(update=changes)

    def in_file(self, plan: LayerPlan) -> tuple[TensorSpec, ...]:
        """A and B of twice the rank."""
        return self.trained(replace(plan, rank=2 * plan.rank))

    def to_file(self, layer: AdaptedLayer) -> tuple[torch.Tensor, ...]:
        """[A ; A0] and [B | -B0]."""
        import torch

        (a, b), (start_a, start_b) = layer.trained, layer.frozen
        return torch.cat([a, start_a], dim=0), torch.cat([b, -start_b], dim=1)

    def from_file(self, layer: AdaptedLayer, saved: Sequence[torch.Tensor]) -> None:
        """Take both halves apart again."""
        (a, start_a), (b, start_b) = saved[0].chunk(2, dim=0), saved[1].chunk(2, dim=1)
        values = (a, b, start_a, -start_b)
        for target, value in zip((*layer.trained, *layer.frozen), values, strict=True):
            target.copy_(value)


def principal_pair(
    weight: torch.Tensor, plan: LayerPlan, rounds: int | None, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest singular values of a base weight, shared out evenly between A [r, in] and B [out, r].

    Args:
        weight: The base weight [out, in]; decomposed in fp32, where it lies.
        plan: Rank and scale.
        rounds: Rounds of the approximate decomposition; None makes the exact one.
        seed: Decides the approximate one.
    """
    import torch

    weight = weight.to(torch.float32)
    if rounds is None:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
    else:
        devices = [weight.device] if weight.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            left, values, columns = torch.svd_lowrank(weight, plan.rank, niter=rounds)
        right = columns.t()
    root = torch.sqrt(values[: plan.rank] / plan.scaling)
    return root[:, None] * right[: plan.rank], left[:, : plan.rank] * root
