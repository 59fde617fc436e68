"""An adapter on disk as PEFT lays it out: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpu_actor.adapters.kinds.base import Shape
from gpu_actor.adapters.peft_config import lack_of_weights, peft_config, read_peft_config
from gpu_actor.adapters.shapes import shared_name, tensor_name
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.adapters.whole_files import Tensors, read_tensors, write_together
from gpu_actor.contract.errors import AdapterError
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.paths import file_names
from gpu_actor.storage.checksums import check_file


def save_adapter(folder: Path, weights: AdapterWeights, base_model: str) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` as PEFT names them, and their checksums.

    Raises:
        OSError: They cannot be written; what was there stands.
    """
    write_together(folder, *adapter_files(weights, base_model))


def adapter_files(weights: AdapterWeights, base_model: str) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """What the files of an adapter hold, by name: safetensors files, then JSON files."""
    names = list(weights.names.values())
    config = peft_config(weights.lora, names, base_model, transposed=weights.transposed)
    kind = weights.kind
    tensors = {
        tensor_name(layer.plan.name, spec.name): tensor
        for layer in weights.adapted_layers()
        for spec, tensor in zip(kind.in_file(layer.plan), kind.to_file(layer), strict=True)
    }
    if kind.saves_shared:
        tensors |= {shared_name(name): tensor for name, tensor in weights.shared.items()}
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return {file_names.ADAPTER_WEIGHTS: on_cpu}, {file_names.ADAPTER_CONFIG: config}


def load_adapter(folder: Path, weights: AdapterWeights) -> None:
    """Read `adapter_model.safetensors` into `weights`.

    Raises:
        DamagedFileError: The file is damaged.
        AdapterError: A tensor is missing, superfluous or of another shape.
    """
    path = folder / file_names.ADAPTER_WEIGHTS
    check_file(path)
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
