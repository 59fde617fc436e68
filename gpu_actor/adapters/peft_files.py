"""An adapter on disk as PEFT lays it out: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from gpu_actor.adapters.peft_config import peft_config, read_peft_config
from gpu_actor.adapters.shapes import PROJECTIONS, tensor_name, trained_tensors
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.adapters.whole_files import read_tensors, write_json, write_tensors
from gpu_actor.contract import file_names
from gpu_actor.contract.errors import AdapterError
from gpu_actor.contract.lora_config import LoraConfig


def save_adapter(folder: Path, weights: AdapterWeights, base_model: str) -> None:
    """Write `adapter_config.json`, then `adapter_model.safetensors`, as PEFT names them; each appears whole.

    An adapter that starts from the base (PiSSA) becomes a plain one of twice the rank, as PEFT converts it:
    B A - B0 A0 = [B | -B0] [A ; A0].
    """
    names = list(weights.names.values())
    config = peft_config(weights.lora, names, base_model, transposed=weights.transposed)
    write_json(folder / file_names.ADAPTER_CONFIG, config)
    tensors = {name: tensor for name, tensor, _ in _trained(weights)}
    if weights.variant == "pissa":
        for index, (a, b) in weights.frozen.items():
            first, second = (tensor_name(weights.plans[index].name, which) for which in ("lora_A", "lora_B"))
            tensors[first] = torch.cat([tensors[first], a], dim=0)
            tensors[second] = torch.cat([tensors[second], -b], dim=1)
    if weights.lora.save_projection:
        tensors |= _projections(weights)
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(folder / file_names.ADAPTER_WEIGHTS, on_cpu)


def load_adapter(folder: Path, weights: AdapterWeights) -> None:
    """Read `adapter_model.safetensors` into `weights`.

    Raises:
        AdapterError: The file is damaged, or a tensor is missing, superfluous or of another shape.
    """
    path = folder / file_names.ADAPTER_WEIGHTS
    tensors = read_tensors(path)
    for name, target, start in _trained(weights):
        place = 1 if name.endswith("lora_B.weight") else 0
        wanted = list(target.shape)
        wanted[place] *= 1 if start is None else 2
        found = _take(tensors, name, wanted, path)
        if start is None:
            target.copy_(found)
        else:
            values, frozen = found.chunk(2, dim=place)
            target.copy_(values)
            start.copy_(frozen if place == 0 else -frozen)
    for name, target in _projections(weights).items():
        if name in tensors:
            found = _take(tensors, name, list(target.shape), path)
            if not weights.lora.save_projection and not torch.equal(found.to(target), target):
                raise AdapterError(
                    f"{path}: {name} is not the matrix that projection_prng_key {weights.lora.projection_prng_key} "
                    f"makes, so that it could not be made anew from the key; set lora.save_projection: true"
                )
            target.copy_(found)
    if tensors:
        raise AdapterError(f"{path}: {len(tensors)} tensors that this job does not train, such as {min(tensors)}")


def _trained(weights: AdapterWeights) -> Iterator[tuple[str, torch.Tensor, torch.Tensor | None]]:
    """Name in the file, tensor, and the part of the start (PiSSA) that is saved with it."""
    for index, tensors in weights.layers.items():
        plan = weights.plans[index]
        starts = weights.frozen[index] if weights.variant == "pissa" else (None,) * len(tensors)
        for spec, tensor, start in zip(trained_tensors(weights.lora, plan), tensors, starts, strict=True):
            yield tensor_name(plan.name, spec.name), tensor, start


def _projections(weights: AdapterWeights) -> dict[str, torch.Tensor]:
    """VeRA's shared matrices by their names in the file."""
    return {f"base_model.{name}": matrix for name, matrix in zip(PROJECTIONS, weights.projections or (), strict=False)}


def _take(tensors: dict[str, torch.Tensor], name: str, shape: list[int], path: Path) -> torch.Tensor:
    found = tensors.pop(name, None)
    if found is None or list(found.shape) != shape:
        has = "is missing" if found is None else f"has shape {list(found.shape)}"
        raise AdapterError(f"{path}: {name} {has}, wanted {shape}")
    return found


def read_adapter(folder: Path, new_adapter: Callable[[LoraConfig], AdapterWeights]) -> AdapterWeights:
    """Load a finished adapter from its output folder.

    Args:
        folder: The output folder of a job.
        new_adapter: Makes an empty adapter for the base model that it belongs to.

    Raises:
        AdapterError: There is none, it belongs to another base, or it is damaged.
    """
    if not (folder / file_names.ADAPTER_CONFIG).is_file():
        raise AdapterError(
            f"{folder}: no finished adapter there ({file_names.ADAPTER_CONFIG} is missing); give a job's output folder"
        )
    weights = new_adapter(read_peft_config(folder))
    load_adapter(folder, weights)
    return weights
