"""The linear layers of a model that is built, which adapters can change, and the description made of them.

Only names and shapes are read, so a model on torch's meta device, without its weights, will do.
"""

from __future__ import annotations

import re
from typing import Any

from gpu_actor.contract.description import BaseDescription, LinearShape

_POSITIONS = re.compile(r"wpe|pos")  # in the name of a table of positions


def describe_model(ref: str, model: Any) -> BaseDescription:
    """The description of a model that is already built (on any device)."""
    linears = tuple(LinearShape(name, *linear_sizes(module)) for name, module in adaptable_linears(model).items())
    text = model.config.get_text_config()
    return BaseDescription(
        ref=ref,
        model_type=model.config.model_type,
        linears=linears,
        hidden_size=text.hidden_size,
        num_layers=text.num_hidden_layers,
        vocab_size=text.vocab_size,
        parameters=_count_parameters(model),
        experts=tuple(expert_weights(model)),
        positions=(positions := getattr(text, "max_position_embeddings", None)),
        position_table=positions is not None and _has_position_table(model, positions),
    )


def _has_position_table(model: Any, positions: int) -> bool:
    """Whether a model looks positions up in a table, be it learned (gpt2, opt) or computed (gptj)."""
    import torch

    tables = [(name, module.weight) for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)]
    tables += [(name, buffer) for name, buffer in model.named_buffers() if buffer.dim() == 2]
    # opt has two rows more
    return any(_POSITIONS.search(name) and positions <= len(table) <= positions + 8 for name, table in tables)


def _count_parameters(model: Any) -> int:
    """Values of a model. A quantised weight counts as many as it stands for, not as many as its packed form has."""
    packed = {id(module.weight): module for module in adaptable_linears(model).values() if _is_packed(module)}
    plain: int = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in packed)
    return plain + sum(int(module.in_features) * int(module.out_features) for module in packed.values())


def _is_packed(module: Any) -> bool:
    return not module.weight.dtype.is_floating_point


def adaptable_linears(model: Any) -> dict[str, Any]:
    """Every linear layer of a model but its output head, by module name, in the model's order.

    GPT-2's Conv1D is a linear layer with its weight transposed, and counts. A router that derives from `nn.Linear`
    and does more than its product is none.
    """
    head = model.get_output_embeddings()
    return {name: module for name, module in model.named_modules() if _is_linear(module) and module is not head}


def _is_linear(module: Any) -> bool:
    """Whether a module's forward is a product with its weight and no more."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if not isinstance(module, torch.nn.Linear):
        return isinstance(module, Conv1D)
    kind = type(module)
    # Falcon and bitsandbytes have forwards of their own, which are products all the same.
    return kind.forward is torch.nn.Linear.forward or kind.__module__.startswith(
        ("transformers.models.falcon.", "bitsandbytes.")
    )


def expert_weights(model: Any) -> list[str]:
    """Names of the weights of three dimensions that a mixture of experts keeps its experts in."""
    return [
        f"{owner}.{name}"
        for owner, module in model.named_modules()
        for name, weight in module.named_parameters(recurse=False)
        if weight.dim() == 3 and not type(module).__name__.startswith("Conv")
    ]


def linear_sizes(module: Any) -> tuple[int, int]:
    """(in_features, out_features) of a Linear or a Conv1D."""
    if hasattr(module, "in_features"):  # the weight itself may be quantised and packed
        return module.in_features, module.out_features
    rows, columns = module.weight.shape
    return rows, columns
