"""What an adapter makes of each weight of its base model."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

import torch
from torch import nn

from gpu_actor.adapters.peft_files import read_adapter
from gpu_actor.adapters.targets import plan_layers
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.contract.errors import AdapterError
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.loading.layers import adaptable_linears, describe_model
from gpu_actor.loading.quantization import dequantised, is_transposed, quantization_of

_CPU = torch.device("cpu")


class Merge:
    """The weights of a base model with an adapter merged into them, one by one.

    A weight is computed in fp32 (fp64 where it is kept so) and comes back in the dtype that it has.
    """

    def __init__(self, ref: str, model: nn.Module, folder: Path, quantised: nn.Module | None = None) -> None:
        """Read an adapter.

        Args:
            ref: How the job names the base model.
            model: The base model; names and shapes are read, so it may be on the meta device.
            folder: Holds the adapter's files.
            quantised: The same base as it was quantised for the training: its layers' weights are taken, rounded as
                they are there, instead of the stored ones.

        Raises:
            AdapterError: There is no adapter, it is damaged, or it is one of another base model.
            InvalidJobError: It changes layers that the base model does not have.
        """
        description, linears = describe_model(ref, model), adaptable_linears(model)

        def new_adapter(lora: LoraConfig) -> AdapterWeights:
            plans = plan_layers(description, lora)
            return AdapterWeights(lora, {i: (plan, linears[plan.name]) for i, plan in enumerate(plans)}, _CPU)

        adapter = read_adapter(folder, new_adapter)
        self._kind = adapter.kind
        self._layers = {f"{layer.plan.name}.weight": layer for layer in adapter.adapted_layers()}
        modules = {} if quantised is None else dict(quantised.named_modules())
        self._packed = {
            f"{name}.weight": module
            for name, module in modules.items()
            if isinstance(getattr(module, "weight", None), torch.Tensor) and quantization_of(module) is not None
        }

    @property
    def layers(self) -> int:
        """How many layers the adapter changes."""
        return len(self._layers)

    @property
    def names(self) -> Set[str]:
        """The parameters of the model that are not as they are stored."""
        return self._layers.keys() | self._packed.keys()

    def __call__(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """What takes the place of a parameter of the model.

        Args:
            name: Of the parameter.
            weight: Its value as it is stored.

        Raises:
            AdapterError: The result is not finite in the weight's dtype, or the weight is of another shape.
        """
        layer, packed = self._layers.get(name), self._packed.get(name)
        if layer is None and packed is None:
            return weight
        wide_dtype = torch.promote_types(weight.dtype, torch.float32)
        wide = weight.to(wide_dtype, copy=True) if packed is None else dequantised(packed, wide_dtype)
        if wide.shape != weight.shape:
            raise AdapterError(
                f"{name} has the shape {list(weight.shape)} in the file and {list(wide.shape)} when loaded"
            )
        if layer is not None:
            transposed = is_transposed(layer.base)
            wide = self._kind.merged(layer, wide.t() if transposed else wide)
            wide = wide.t() if transposed else wide
        merged = wide.to(weight.dtype).contiguous()
        if not merged.isfinite().all():
            raise AdapterError(
                f"{name}: the merged weight is not finite in {str(weight.dtype).removeprefix('torch.')}; "
                "the adapter is broken, or too large for this number format"
            )
        return merged
