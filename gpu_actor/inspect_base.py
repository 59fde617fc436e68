"""Describe a base model without loading its weights: the model is built on torch's meta device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpu_actor.errors import BaseModelError
from gpu_actor.footprint import BaseDescription, LinearShape
from gpu_actor.model_store import resolve_base_model


def describe_base(ref: str, trust_remote_code: bool = False) -> BaseDescription:
    """Names and sizes of a base model's linear layers, from its configuration alone.

    Args:
        ref: Folder or hub id.
        trust_remote_code: Let the model's own Python code run. Off unless the operator wants it.

    Raises:
        BaseModelError: The reference is no causal language model that transformers can build.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from gpu_actor.activation_probe import count_activations

    config = load_config(ref, trust_remote_code)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise BaseModelError(f"base_model: {ref}: transformers cannot build this model ({one_line(error)})") from None
    counted = count_activations(config, trust_remote_code=trust_remote_code)
    return replace(describe_model(ref, model), activations=counted)


def load_config(ref: str, trust_remote_code: bool = False) -> Any:
    """The `transformers` configuration of a base model.

    Raises:
        BaseModelError: There is none, it is damaged, or it asks for code of its own.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(resolve_base_model(ref), trust_remote_code=trust_remote_code)
    except Exception as error:
        raise BaseModelError(
            f"base_model: {ref}: no usable model there ({one_line(error)}); give a folder with config.json and "
            f"safetensors weights, or the id of a model on the hub that this machine can reach"
        ) from None


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
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def adaptable_linears(model: Any) -> dict[str, Any]:
    """Every linear layer of a model but its output head, by module name, in the model's order.

    GPT-2's Conv1D is a linear layer with its weight transposed, and counts.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head
    }


def linear_sizes(module: Any) -> tuple[int, int]:
    """(in_features, out_features) of a Linear or a Conv1D."""
    rows, columns = module.weight.shape
    return (columns, rows) if hasattr(module, "in_features") else (rows, columns)


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception's text on one line, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
