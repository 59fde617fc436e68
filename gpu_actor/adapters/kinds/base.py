"""What a kind of adapter has to say: its tensors, their start values, their form in a file, and what they cost.

The orchestrator sizes jobs with these classes and must not load torch, so methods that need torch import it late.
What a kind does to the rows of a layer is in `gpu_actor.operators`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gpu_actor.adapters.layer_plan import LayerPlan
from gpu_actor.contract.lora_config import LoraConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

Shape = tuple[int, ...]
COMMON_FIELDS = ("peft_type", "r", "target_modules", "layers_to_transform", "layers_pattern")
"""Fields of `adapter_config.json` that every kind has."""


@dataclass(frozen=True)
class TensorSpec:
    """One trained tensor of one layer.

    Attributes:
        name: PEFT's name of it behind the module's, such as lora_A.weight or vera_lambda_b.
        shape: Its sizes.
        fast: Whether LoRA+ (arXiv 2402.12354) trains it at the higher rate: every B, and every vector.
    """

    name: str
    shape: Shape
    fast: bool

    @property
    def values(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def steps(self) -> Shape:
        """From one index to the next of each dimension, how many values there are: strides without gaps."""
        return tuple(math.prod(self.shape[dimension + 1 :]) for dimension in range(len(self.shape)))


@dataclass(frozen=True)
class AdaptedLayer:
    """The tensors of one adapter at one layer.

    Attributes:
        plan: Sizes, rank and scale.
        base: The frozen linear layer of the base.
        trained: The trained tensors, as `AdapterKind.trained` lists them.
        frozen: What `AdapterKind.make_frozen` made.
    """

    plan: LayerPlan
    base: nn.Module
    trained: tuple[torch.Tensor, ...]
    frozen: tuple[torch.Tensor, ...]


class AdapterKind:
    """One kind of adapter; an object describes one adapter of that kind.

    Attributes:
        peft_type: PEFT's name of the family that the kind belongs to.
        fields: Fields of `adapter_config.json`, beside those of every kind, that the family has.
        required: Fields without which a saved configuration is not usable.
        function_fields: Fields on which the function of the same tensors depends.
    """

    peft_type: ClassVar[str]
    fields: ClassVar[tuple[str, ...]]
    required: ClassVar[tuple[str, ...]]
    function_fields: ClassVar[tuple[str, ...]]

    def __init__(self, lora: LoraConfig) -> None:
        self.lora = lora

    @classmethod
    def matches(cls, lora: LoraConfig) -> bool:
        """Whether a configuration asks for this kind."""
        raise NotImplementedError

    def check(self, plan: LayerPlan) -> None:
        """Refuse a layer that the kind cannot change.

        Raises:
            InvalidJobError: It cannot.
        """

    # -- tensors -------------------------------------------------------------------------------------------------

    def trained(self, plan: LayerPlan) -> tuple[TensorSpec, ...]:
        """What is trained in one layer."""
        raise NotImplementedError

    def shared_shapes(self, plans: Sequence[LayerPlan]) -> dict[str, Shape]:  # noqa: ARG002
        """Frozen tensors that all layers share, by PEFT's names; most kinds have none."""
        return {}

    def make_shared(self, plans: Sequence[LayerPlan]) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """The tensors of `shared_shapes`, fp32 on the CPU."""
        return {}

    def make_frozen(
        self,
        plan: LayerPlan,  # noqa: ARG002
        trained: tuple[torch.Tensor, ...],  # noqa: ARG002
        shared: Mapping[str, torch.Tensor],  # noqa: ARG002
    ) -> tuple[torch.Tensor, ...]:
        """What one layer holds and does not train: new tensors, or views of shared ones; most kinds have none.

        Args:
            plan: The layer.
            trained: Its trained tensors, all zero; they show device and dtype.
            shared: The tensors of `make_shared`, on that device.
        """
        return ()

    def start(self, layer: AdaptedLayer, generator: torch.Generator, seed: int) -> None:
        """Set the start values of one layer, as PEFT does.

        Args:
            layer: Its tensors, changed in place.
            generator: The adapter's random numbers; the layers draw from it in order.
            seed: For what draws otherwise: another one in each layer.
        """
        raise NotImplementedError

    # -- costs ---------------------------------------------------------------------------------------------------

    def frozen_values(self, plans: Sequence[LayerPlan]) -> int:
        """Number of values that an adapter holds and does not train."""
        return sum(math.prod(shape) for shape in self.shared_shapes(plans).values())

    def working_values(self, plans: Sequence[LayerPlan]) -> int:  # noqa: ARG002
        """Number of values of the largest tensor that is made for one layer and dropped again."""
        return 0

    def kept_values(self, plan: LayerPlan) -> int:
        """Number of fp32 values that one token leaves in one layer for the backward: the low-rank product."""
        return plan.rank

    # -- files ---------------------------------------------------------------------------------------------------

    def as_saved(self) -> LoraConfig:
        """The adapter that the file holds; it differs where PEFT converts a kind on saving."""
        return self.lora

    def config(self) -> dict[str, Any]:
        """The fields of `adapter_config.json` that say what adapter it is."""
        return self.lora.model_dump(include={*COMMON_FIELDS, *self.fields})

    def config_of_start(self) -> dict[str, Any]:
        """The field of `adapter_config.json` that says how it started."""
        raise NotImplementedError

    def in_file(self, plan: LayerPlan) -> tuple[TensorSpec, ...]:
        """What the file holds of one layer."""
        return self.trained(plan)

    def to_file(self, layer: AdaptedLayer) -> tuple[torch.Tensor, ...]:
        """The tensors of `in_file`."""
        return layer.trained

    def from_file(self, layer: AdaptedLayer, saved: Sequence[torch.Tensor]) -> None:
        """Set the tensors of a layer to what `to_file` gave."""
        for target, value in zip(layer.trained, saved, strict=True):
            target.copy_(value)

    def merged(self, layer: AdaptedLayer, weight: torch.Tensor) -> torch.Tensor:
        """The weight of a linear layer that computes by itself what the layer and the adapter compute together.

        Args:
            layer: The adapter's tensors.
            weight: W [out, in], in fp32 or fp64; it may be changed in place.
        """
        raise NotImplementedError

    @property
    def saves_shared(self) -> bool:
        """Whether the shared tensors are written to the file."""
        return True

    def shared_mismatch(
        self,
        name: str,  # noqa: ARG002
        saved: torch.Tensor,  # noqa: ARG002
        made: torch.Tensor,  # noqa: ARG002
    ) -> str | None:
        """Why the shared tensor of a file cannot take the place of the one that was made; None where it can."""
        return None
