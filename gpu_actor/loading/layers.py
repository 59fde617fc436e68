"""Describe a base model without loading its weights: the model is built on torch's meta device."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from typing import Any

from gpu_actor.contract.errors import BaseModelError
from gpu_actor.contract.footprint import BaseDescription, LinearShape
from gpu_actor.contract.locations import BaseFiles, find_base
from gpu_actor.loading.chatglm import glm_config, is_chatglm

_POSITIONS = re.compile(r"wpe|pos")  # in the name of a table of positions


def describe_base(ref: str, trust_remote_code: bool = False) -> BaseDescription:
    """Names and sizes of a base model's linear layers, from its configuration alone.

    Args:
        ref: Folder, .gguf file or hub id.
        trust_remote_code: Let the model's own Python code run. Off unless the operator wants it.

    Raises:
        BaseModelError: The reference is no causal language model that transformers can build.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from gpu_actor.model.count_activations import count_activations

    config = load_config(ref, trust_remote_code)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise BaseModelError(f"base_model: {ref}: transformers cannot build this model ({one_line(error)})") from None
    counted = count_activations(config, trust_remote_code=trust_remote_code)
    return replace(describe_model(ref, model), activations=counted)


def load_config(ref: str, trust_remote_code: bool = False) -> Any:
    """The `transformers` configuration of a base model, from its config.json or its GGUF file.

    Raises:
        BaseModelError: There is none, it is damaged, it asks for code of its own, or it is quantised already.
    """
    from transformers import AutoConfig

    files = find_base(ref)
    if files.gguf_file is not None:
        return _gguf_config(ref, files)
    raw = read_config(ref)
    if is_chatglm(raw):
        return glm_config(raw, ref)
    if raw.get("is_encoder_decoder"):  # transformers would load the decoder alone, without a word
        raise BaseModelError(
            f"base_model: {ref}: a {raw.get('model_type')} model has an encoder and a decoder; Loray trains causal "
            "(decoder-only) language models"
        )
    quantised = raw.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
        raise BaseModelError(
            f"base_model: {ref}: the checkpoint is quantised already ({method or 'quantization_config'}); give the "
            "unquantised one, and set the actor's quantization in the cluster file (nf4 or int8)"
        )
    try:
        return AutoConfig.from_pretrained(files.place, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _unusable(ref, error) from None


def read_config(ref: str) -> dict[str, Any]:
    """The config.json of a base model as it stands.

    Raises:
        BaseModelError: There is none, or it is no JSON object.
    """
    from transformers import PreTrainedConfig

    place = find_base(ref).place
    try:
        raw: dict[str, Any] = PreTrainedConfig.get_config_dict(place)[0]
    except Exception as error:
        raise _unusable(ref, error) from None
    if not raw:
        raise _unusable(ref, FileNotFoundError("config.json is missing or empty"))
    return raw


def _gguf_config(ref: str, files: BaseFiles) -> Any:
    from transformers import AutoConfig

    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise BaseModelError(
            f"base_model: {ref}: a GGUF file needs {' and '.join(missing)}, which is not installed; "
            "install the extra: pip install 'loray[gguf]'"
        )
    try:
        return AutoConfig.from_pretrained(files.place, gguf_file=files.gguf_file)
    except Exception as error:
        raise BaseModelError(
            f"base_model: {ref}: {files.gguf_file} is no GGUF file that transformers reads ({one_line(error)}); "
            "fetch it again, or give the model as safetensors"
        ) from None


def _unusable(ref: str, error: Exception) -> BaseModelError:
    return BaseModelError(
        f"base_model: {ref}: no usable model there ({one_line(error)}); give a folder with config.json and "
        f"safetensors weights, a .gguf file, or the id of a model on the hub that this machine can reach"
    )


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

    kind = type(module)
    known = kind.__module__.startswith(("transformers.models.falcon.", "bitsandbytes."))  # their forwards are products
    own = kind.forward is not torch.nn.Linear.forward and not known
    return isinstance(module, Conv1D) or (isinstance(module, torch.nn.Linear) and not own)


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


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception's text on one line, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
