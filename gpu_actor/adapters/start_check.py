"""Does a start adapter fit its base and its job? Decided from two headers, without reading a weight."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from gpu_actor.adapters.kinds import kind_of
from gpu_actor.adapters.kinds.base import Shape
from gpu_actor.adapters.layer_plan import LayerPlan
from gpu_actor.adapters.peft_config import lack_of_weights, read_peft_config
from gpu_actor.adapters.shapes import file_shapes, tensor_name
from gpu_actor.adapters.targets import plan_layers
from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.errors import AdapterError
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.paths import file_names

_LONGEST_HEADER = 16 << 20  # bytes; an adapter of ten thousand tensors has a tenth of it


def check_adapter_fits(base: BaseDescription, lora: LoraConfig) -> None:
    """Check that `lora.init_adapter` has exactly the tensors and the scale that this base and this job call for.

    Raises:
        AdapterError: Its weights are not there, it is of another kind, or a tensor is missing, superfluous or of
            another shape; the message names the first of them.
    """
    if lora.init_adapter is None:
        return
    saved = read_peft_config(Path(lora.init_adapter))
    layers = plan_layers(base, lora)
    _check_same_function(lora, saved, layers)
    if lack := lack_of_weights(Path(lora.init_adapter)):
        raise AdapterError(f"lora.init_adapter: {lora.init_adapter} {lack}")
    path = Path(lora.init_adapter) / file_names.ADAPTER_WEIGHTS
    shapes = read_shapes(path)
    wanted = file_shapes(lora, layers, shared=kind_of(saved).saves_shared)
    for name, shape in wanted.items():
        if shapes.get(name) != shape:
            has = f"has shape {list(shapes[name])}" if name in shapes else "is missing"
            raise AdapterError(
                f"lora.init_adapter: {lora.init_adapter} does not fit {base.ref}: {name} {has}, wanted {list(shape)} "
                f"(r={lora.r}, target_modules={lora.target_modules!r}); use the base model, rank and targets that "
                f"the adapter was trained with"
            )
    extra = sorted(set(shapes) - set(wanted))
    in_towers = [name for name in base.tower_linears if any(key.startswith(tensor_name(name, "")) for key in extra)]
    if in_towers:
        raise AdapterError(
            f"lora.init_adapter: {lora.init_adapter} also changes {len(in_towers)} layers that read images or sound, "
            f"such as {in_towers[0]}; no text runs through them, so this job would neither train nor keep what it "
            f"learned there; start from an adapter of the language model's layers alone"
        )
    if extra:
        raise AdapterError(
            f"lora.init_adapter: {lora.init_adapter} has {len(extra)} tensors that this job would not train, such as "
            f"{extra[0]}; list their modules in lora.target_modules"
        )


def _check_same_function(lora: LoraConfig, saved: LoraConfig, layers: tuple[LayerPlan, ...]) -> None:
    """An adapter that is applied otherwise than it was trained would start as another adapter, without a word."""
    for field in ("peft_type", *kind_of(lora).function_fields):
        there, here = getattr(saved, field), getattr(lora, field)
        if there != here:
            raise AdapterError(
                f"lora.init_adapter: {lora.init_adapter} was trained with {field} {_shown(there)}, this job has "
                f"{_shown(here)}; set lora.{field}: {_shown(there)}"
            )
    names = [layer.name for layer in layers]
    alphas_there, alphas_here = saved.alphas_of(names), lora.alphas_of(names)
    for layer in layers:
        there, here = alphas_there[layer.name], alphas_here[layer.name]
        if there != here:
            raise AdapterError(
                f"lora.init_adapter: {lora.init_adapter} was trained with a lora_alpha of {there:g} at {layer.name}, "
                f"this job has {here:g} there; set lora.alpha_pattern: {saved.alpha_pattern}"
            )


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def read_shapes(path: Path) -> dict[str, Shape]:
    """Names and shapes of the tensors of a safetensors file, without its data.

    Raises:
        AdapterError: The file is not safetensors or is cut short.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LONGEST_HEADER:
                raise ValueError("header too long")
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("header is no object")
        header.pop("__metadata__", None)
        return {name: tuple(map(int, entry["shape"])) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, struct.error) as error:
        raise AdapterError(
            f"{path}: not a readable safetensors file ({type(error).__name__}: {error}); copy or export it again"
        ) from None
