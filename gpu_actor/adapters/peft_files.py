"""An adapter on disk as PEFT lays it out: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from gpu_actor.adapters.kinds.base import Shape
from gpu_actor.adapters.peft_config import lack_of_weights, peft_config, read_peft_config
from gpu_actor.adapters.shapes import shared_name, tensor_name
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.adapters.whole_files import read_tensors, write_json, write_tensors
from gpu_actor.contract import file_names
from gpu_actor.contract.errors import AdapterError
from gpu_actor.contract.lora_config import LoraConfig


def save_adapter(folder: Path, weights: AdapterWeights, base_model: str) -> None:
    """Write `adapter_config.json`, then `adapter_model.safetensors`, as PEFT names them; each appears whole."""
    names = list(weights.names.values())
    config = peft_config(weights.lora, names, base_model, transposed=weights.transposed)
    write_json(folder / file_names.ADAPTER_CONFIG, config)
    kind = weights.kind
    tensors = {
        tensor_name(layer.plan.name, spec.name): tensor
        for layer in weights.adapted_layers()
        for spec, tensor in zip(kind.in_file(layer.plan), kind.to_file(layer), strict=True)
    }
    if kind.saves_shared:
        tensors |= {shared_name(name): tensor for name, tensor in weights.shared.items()}
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(folder / file_names.ADAPTER_WEIGHTS, on_cpu)


def load_adapter(folder: Path, weights: AdapterWeights) -> None:
    """Read `adapter_model.safetensors` into `weights`.

    Raises:
        AdapterError: The file is damaged, or a tensor is missing, superfluous or of another shape.
    """
    path = folder / file_names.ADAPTER_WEIGHTS
    tensors = read_tensors(path)
    kind = weights.kind
    for layer in weights.adapted_layers():
        specs = kind.in_file(layer.plan)
        saved = [_take(tensors, tensor_name(layer.plan.name, spec.name), spec.shape, path) for spec in specs]
        kind.from_file(layer, saved)
    for name, made in weights.shared.items():
        key = shared_name(name)
        if key in tensors:
            matrix = _take(tensors, key, tuple(made.shape), path)
            if problem := kind.shared_mismatch(key, matrix, made):
                raise AdapterError(f"{path}: {problem}")
            made.copy_(matrix)
    if tensors:
        raise AdapterError(f"{path}: {len(tensors)} tensors that this job does not train, such as {min(tensors)}")


def _take(tensors: dict[str, torch.Tensor], name: str, shape: Shape, path: Path) -> torch.Tensor:
    tensor = tensors.pop(name, None)
    if tensor is None or tensor.shape != shape:
        has = "is missing" if tensor is None else f"has shape {list(tensor.shape)}"
        raise AdapterError(f"{path}: {name} {has}, wanted {list(shape)}")
    return tensor


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
    lora = read_peft_config(folder)
    if lack := lack_of_weights(folder):
        raise AdapterError(f"{folder}: {lack}")
    weights = new_adapter(lora)
    load_adapter(folder, weights)
    return weights
