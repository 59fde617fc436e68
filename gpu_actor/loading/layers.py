"""The linear layers of a model that is built, which adapters can change, and the description made of them.

Only names and shapes are read, so a model on torch's meta device, without its weights, will do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from gpu_actor.contract.description import BaseDescription, LinearShape
from gpu_actor.contract.errors import BaseModelError

# By the family whose way of fusing experts transformers applies; PEFT knows these two.
_EXPERT_ENDINGS = {"mixtral": ("gate", "w1", "w2", "w3"), "qwen2_moe": ("gate", "gate_proj", "up_proj", "down_proj")}
_POSITIONS = re.compile(r"wpe|pos")  # in the name of a table of positions


def describe_model(ref: str, model: Any) -> BaseDescription:
    """The description of a model that is already built (on any device).

    Raises:
        BaseModelError: Its configuration does not tell its sizes.
    """
    text = model.config.get_text_config()
    for size in ("hidden_size", "num_hidden_layers", "vocab_size"):
        if not hasattr(text, size):
            raise BaseModelError(
                f"base_model: {ref}: the configuration of a {model.config.model_type} model has no {size}, by which "
                f"Loray reckons its memory; use another base model"
            )
    linears = tuple(LinearShape(name, *linear_sizes(module)) for name, module in adaptable_linears(model).items())
    adaptable, in_body = {linear.name for linear in linears}, _linears_in(model, model.get_submodule(body_name(model)))
    others = [name for name in _linears_in(model, model) if name not in adaptable]
    return BaseDescription(
        ref=ref,
        model_type=model.config.model_type,
        linears=linears,
        hidden_size=text.hidden_size,
        num_layers=text.num_hidden_layers,
        vocab_size=text.vocab_size,
        parameters=_count_parameters(model),
        head_linears=tuple(name for name in others if name not in in_body),
        tower_linears=tuple(name for name in others if name in in_body),
        experts=tuple(expert_weights(model)),
        expert_endings=_expert_endings(model.config.model_type),
        renamed_linears=_renamed(model.config.model_type, adaptable),
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
    packed = {id(module.weight): module for module in _linears_in(model, model).values() if _is_packed(module)}
    plain: int = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in packed)
    return plain + sum(int(module.in_features) * int(module.out_features) for module in packed.values())


def _is_packed(module: Any) -> bool:
    return not module.weight.dtype.is_floating_point


def body_name(model: Any) -> str:
    """The name of the child of a causal language model that makes hidden states of tokens; "" if it has none.

    It is `base_model_prefix`, but Llama 4's causal model has its body elsewhere.
    """
    from transformers import PreTrainedModel

    if model.base_model_prefix in dict(model.named_children()):
        return str(model.base_model_prefix)
    bodies = [name for name, child in model.named_children() if isinstance(child, PreTrainedModel)]
    return bodies[0] if len(bodies) == 1 else ""


def text_body(model: Any) -> Any:
    """The part of a causal language model that runs on every token of a text.

    The output head with what belongs to it, and in a multimodal model the towers that read images and sound and their
    projections, lie outside.
    """
    body = model.get_submodule(body_name(model))
    is_multimodal = model.config.get_text_config() is not model.config
    return body.get_decoder() if is_multimodal else body


def adaptable_linears(model: Any) -> dict[str, Any]:
    """Every linear layer of a model's text body, by module name, in the model's order.

    GPT-2's Conv1D is a linear layer with its weight transposed, and counts. A router that derives from `nn.Linear`
    and does more than its product is none.
    """
    return _linears_in(model, text_body(model))


def _linears_in(model: Any, part: Any) -> dict[str, Any]:
    """The linear layers of a part of a model by their names in the model, without the output embedding."""
    inside = {id(module) for module in part.modules()} - {id(model.get_output_embeddings())}
    return {name: module for name, module in model.named_modules() if id(module) in inside and _is_linear(module)}


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
    inside = {id(module) for module in text_body(model).modules()}
    return [
        f"{owner}.{name}"
        for owner, module in model.named_modules()
        if id(module) in inside and not type(module).__name__.startswith("Conv")
        for name, weight in module.named_parameters(recurse=False)
        if weight.dim() == 3
    ]


def _expert_endings(model_type: str) -> tuple[str, ...]:
    """The names of layers that PEFT, on a base of this type, takes for those that each expert once had."""
    from transformers import conversion_mapping

    families = {"mixtral": "mixtral", **getattr(conversion_mapping, "_MODEL_TO_CONVERSION_PATTERN", {})}
    return _EXPERT_ENDINGS.get(families.get(model_type, ""), ())


def _renamed(model_type: str, names: Iterable[str]) -> tuple[str, ...]:
    """The layers that PEFT, on a base of this type, does not find again by their own names.

    It reads an adapter by the rules by which transformers renames the weights of old checkpoints, and one of them may
    meet a new name as well (laguna: `shared_expert.`, read as an expression, is in `shared_experts`).
    """
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:  # a transformers before these rules: then PEFT has none either
        return ()
    rules = [rule for rule in get_checkpoint_conversion_mapping(model_type) or () if isinstance(rule, WeightRenaming)]
    weights = {name: f"{name}.weight" for name in sorted(names)}
    return tuple(name for name, weight in weights.items() if rename_source_key(weight, rules, [])[0] != weight)


def linear_sizes(module: Any) -> tuple[int, int]:
    """(in_features, out_features) of a Linear or a Conv1D."""
    if hasattr(module, "in_features"):  # the weight itself may be quantised and packed
        return module.in_features, module.out_features
    rows, columns = module.weight.shape
    return rows, columns
