"""A small random model with the layers of a large one, in fp64, to ask what the large one cannot answer.

A mixture of experts gathers the rows of all sequences by expert, so what a neighbour holds decides how many rows an
expert multiplies, and matrix kernels round a row by that. In fp64 such rounding is about 1e-15 of a value.
"""

from __future__ import annotations

import re
from typing import Any

import torch

_HEADS = re.compile(r"heads?$")
_KEY_VALUE_HEADS = re.compile(r"key_value|kv|multi_query")
_WIDTH = re.compile(r"^(hidden_size|n_embd|d_model|n_inner)$|intermediate|ffn")
_VOCABULARY = 1024


def small_copy(model: Any, most: int | None = None) -> Any:
    """A random model of the same class and the same kinds of layers, narrower and shallower, in fp64 on the CPU.

    Every number of heads and every width is divided by one power of two, so that head sizes stay; as few layers stay
    as have every class of module that `model` has.

    Args:
        model: Of its weights nothing is read; they may be on the meta device.
        most: Parameters that the copy may have; None: any number.

    Raises:
        ValueError: It would have more.
        Exception: Whatever the family's code raises of sizes that it does not allow.
    """
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    depth = model.config.num_hidden_layers
    wanted = _families_classes(model)
    layers = 2
    while True:
        config = type(model.config).from_dict(_narrowed(_cut(settings, depth, min(layers, depth))))
        config._experts_implementation = "eager"  # the fused product of experts has no fp64
        with torch.device("meta"):
            empty = type(model)(config)
        complete = wanted <= _families_classes(empty)
        if complete or layers >= depth:
            break
        layers *= 2
    count = sum(parameter.numel() for parameter in empty.parameters())
    if most is not None and count > most:
        raise ValueError(f"the smallest copy of this model has {count} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = type(model)(config).double()
        with torch.no_grad():
            for parameter in small.parameters():
                if parameter.dim() >= 2:  # the usual start is so small that layers hardly add to their input
                    parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return small


def _families_classes(model: Any) -> set[type]:
    """The classes of modules that are the family's own: no plain torch layers, and nothing that was hooked in."""
    plain = ("torch.", "gpu_actor.", "bitsandbytes.", "transformers.activations", "transformers.pytorch_utils")
    return {type(module) for module in model.modules() if not type(module).__module__.startswith(plain)}


def _cut(settings: dict[str, Any], depth: int, layers: int) -> dict[str, Any]:
    """A configuration with its first `layers` layers: lists with an entry per layer are cut."""
    cut = {name: value[:layers] if _is_per_layer(value, depth) else value for name, value in settings.items()}
    return {name: layers if name in ("num_hidden_layers", "n_layer") else value for name, value in cut.items()}


def _is_per_layer(value: Any, depth: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == depth


def _narrowed(settings: dict[str, Any]) -> dict[str, Any]:
    """A configuration whose widths and heads are divided by the largest power of two that divides them all."""
    numbers = {name: value for name, value in settings.items() if type(value) is int and value > 0}
    heads = {name for name in numbers if _HEADS.search(name)}
    widths = {name for name in numbers if _WIDTH.search(name)}
    exact = [numbers[name] for name in heads | widths if not _KEY_VALUE_HEADS.search(name)]
    factor = min((number & -number for number in exact), default=1)
    narrowed = dict(settings)
    for name in heads | widths:
        narrowed[name] = max(1, numbers[name] // factor)
    for name, value in numbers.items():
        if name == "vocab_size":
            narrowed[name] = min(value, _VOCABULARY)
        elif name.endswith("token_id") and value >= _VOCABULARY:
            narrowed[name] = 0
    return narrowed
