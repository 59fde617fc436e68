"""VeRA (arXiv 2310.11454): two trained vectors per layer between random matrices, frozen and shared by all layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpu_actor.adapters.kinds.base import AdaptedLayer, AdapterKind, Shape, TensorSpec
from gpu_actor.adapters.layer_plan import LayerPlan
from gpu_actor.contract.lora_config import LoraConfig

if TYPE_CHECKING:
    import torch


class Vera(AdapterKind):
    """VeRA: lambda_b [out] and lambda_d [r], and the shared A [r, widest in] and B [widest out, r]."""

    peft_type = "VERA"
    fields = ("vera_dropout", "d_initial", "projection_prng_key", "save_projection")
    required = ("r", "target_modules")
    function_fields = ("projection_prng_key",)

    @classmethod
    def matches(cls, lora: LoraConfig) -> bool:
        """By its PEFT type."""
        return lora.peft_type == cls.peft_type

    def trained(self, plan: LayerPlan) -> tuple[TensorSpec, ...]:
        """The two vectors."""
        return (
            TensorSpec("vera_lambda_b", (plan.out_features,), fast=True),
            TensorSpec("vera_lambda_d", (plan.rank,), fast=True),
        )

    def shared_shapes(self, plans: Sequence[LayerPlan]) -> dict[str, Shape]:
        """A and B, as large as the largest layer asks for."""
        return {
            "vera_A": (self.lora.r, max(plan.in_features for plan in plans)),
            "vera_B": (max(plan.out_features for plan in plans), self.lora.r),
        }

    def make_shared(self, plans: Sequence[LayerPlan]) -> dict[str, torch.Tensor]:
        """Kaiming-uniform, decided by key and shapes alone."""
        import torch

        generator = torch.Generator().manual_seed(self.lora.projection_prng_key)
        matrices = {name: torch.empty(shape) for name, shape in self.shared_shapes(plans).items()}
        for matrix in matrices.values():
            bound = math.sqrt(3.0) * math.sqrt(2.0) / math.sqrt(matrix.shape[1])
            matrix.uniform_(-bound, bound, generator=generator)
        return matrices

    def make_frozen(
        self,
        plan: LayerPlan,
        trained: tuple[torch.Tensor, ...],  # noqa: ARG002
        shared: Mapping[str, torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """The layer's part of A [r, in] and of B [out, r]."""
        return shared["vera_A"][:, : plan.in_features], shared["vera_B"][: plan.out_features]

    def start(self, layer: AdaptedLayer, generator: torch.Generator, seed: int) -> None:  # noqa: ARG002
        """lambda_b is zero."""
        lambda_b, lambda_d = layer.trained
        lambda_b.zero_()
        lambda_d.fill_(self.lora.d_initial)

    def merged(self, layer: AdaptedLayer, weight: torch.Tensor) -> torch.Tensor:
        """W + (lambda_b * B) (lambda_d * A)."""
        (lambda_b, lambda_d), (a, b) = layer.trained, layer.frozen
        return weight.add_((lambda_b[:, None] * b) @ (lambda_d[:, None] * a))

    def config_of_start(self) -> dict[str, Any]:
        """PEFT's field that says that there is a start."""
        return {"init_weights": True}

    @property
    def saves_shared(self) -> bool:
        """Unless they are to be made anew from their key."""
        return self.lora.save_projection

    def shared_mismatch(self, name: str, saved: torch.Tensor, made: torch.Tensor) -> str | None:
        """Matrices that are not saved with this adapter must be those that its key makes."""
        if self.saves_shared or saved.to(made).equal(made):
            return None
        return (
            f"{name} is not the matrix that projection_prng_key {self.lora.projection_prng_key} makes, so that it "
            f"could not be made anew from the key; set lora.save_projection: true"
        )
