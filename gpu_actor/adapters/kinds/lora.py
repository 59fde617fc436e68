"""LoRA and rsLoRA (arXiv 2106.09685, 2312.03732): two trained low-rank matrices per layer, A and B."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpu_actor.adapters.kinds.base import AdaptedLayer, AdapterKind, TensorSpec
from gpu_actor.adapters.layer_plan import LayerPlan
from gpu_actor.contract.lora_config import LoraConfig

if TYPE_CHECKING:
    import torch


class Lora(AdapterKind):
    """LoRA: A [r, in] and B [out, r]."""

    peft_type = "LORA"
    fields = (
        *("lora_alpha", "lora_dropout", "exclude_modules", "rank_pattern", "alpha_pattern"),
        *("use_rslora", "use_dora"),
    )
    required = ("r", "lora_alpha", "target_modules")
    function_fields = ("lora_alpha", "use_rslora", "use_dora")

    @classmethod
    def matches(cls, lora: LoraConfig) -> bool:
        """By its PEFT type: what the special cases of LoRA leave."""
        return lora.peft_type == cls.peft_type

    def trained(self, plan: LayerPlan) -> tuple[TensorSpec, ...]:
        """A and B."""
        return (
            TensorSpec("lora_A.weight", (plan.rank, plan.in_features), fast=False),
            TensorSpec("lora_B.weight", (plan.out_features, plan.rank), fast=True),
        )

    def start(self, layer: AdaptedLayer, generator: torch.Generator, seed: int) -> None:  # noqa: ARG002
        """A is random and B A is zero."""
        from gpu_actor.adapters.start_values import STARTS

        plan = layer.plan
        values = STARTS[self.lora.init_lora_weights](plan.rank, plan.in_features, plan.out_features, generator)
        for tensor, value in zip(layer.trained, values, strict=False):
            tensor.copy_(value)

    def merged(self, layer: AdaptedLayer, weight: torch.Tensor) -> torch.Tensor:
        """W + s B A; of PiSSA by the matrices in its file, of twice the rank."""
        a, b = self.to_file(layer)[:2]
        return weight.add_((b @ a).mul_(layer.plan.scaling))

    def config(self) -> dict[str, Any]:
        """PEFT writes whole numbers for alpha."""
        alphas = {key: _whole(alpha) for key, alpha in self.lora.alpha_pattern.items()}
        return {**super().config(), "lora_alpha": _whole(self.lora.lora_alpha), "alpha_pattern": alphas}

    def config_of_start(self) -> dict[str, Any]:
        """`init_lora_weights`."""
        return {"init_lora_weights": self.lora.init_lora_weights}


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value
