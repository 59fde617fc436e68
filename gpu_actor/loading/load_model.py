"""From a base model's reference to a transformers model on its device, whatever form its weights have."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GlmForCausalLM

from gpu_actor.contract.config import Quantization
from gpu_actor.contract.errors import BaseModelError
from gpu_actor.contract.messages import one_line
from gpu_actor.loading.chatglm import glm_tensors, is_chatglm
from gpu_actor.loading.config_files import load_config, read_config
from gpu_actor.loading.layers import adaptable_linears
from gpu_actor.loading.model_class import auto_class
from gpu_actor.loading.quantization import keep_packing, quantization_of, quantization_settings
from gpu_actor.loading.weight_files import PICKLES_REFUSED, check_safetensors, tensors_of
from gpu_actor.paths.locations import BaseFiles, find_base, pickles_in, safetensors_in

logger = logging.getLogger(__name__)

_SHOWN = 3


def load_model(
    ref: str,
    device: str = "cpu",
    dtype: str = "float32",
    *,
    quantization: Quantization | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Any:
    """Load a causal language model from a folder, a .gguf file or the hub.

    Args:
        ref: Folder, .gguf file or hub id.
        device: `cpu`, `cuda` or `cuda:<n>`.
        dtype: Of weights and products; a GGUF file is dequantised to it.
        quantization: Quantise the linear layers while loading; None keeps them as dtype.
        trust_remote_code: Let the model's own Python code run.
        allow_pickle: Read pickled weights where there are no safetensors (torch.load, tensors only).

    Raises:
        BaseModelError: It cannot be loaded; the message says why.
    """
    files = find_base(ref)
    config = load_config(ref, trust_remote_code)
    settings: dict[str, Any] = {"dtype": getattr(torch, dtype), **placement(device)}
    if quantization is not None:
        settings |= quantization_settings(quantization, device, settings["dtype"])
    try:
        if files.gguf_file is None and is_chatglm(raw := read_config(ref)):
            state = glm_tensors(raw, tensors_of(files, allow_pickle), ref)
            model, notes = model_from_tensors(GlmForCausalLM, config, state, settings)
        elif files.gguf_file is not None:
            model, notes = _from_gguf(files, config, settings)
        else:
            model, notes = _from_files(files, config, settings, trust_remote_code, allow_pickle)
    except BaseModelError:
        raise
    except Exception as error:
        if "Unrecognized configuration class" in str(error):  # what AutoModelForCausalLM says, with all that it knows
            raise BaseModelError(
                f"base_model: {ref}: transformers has no causal language model for model_type {config.model_type}; "
                f"use the whole checkpoint that this is a part of, or another base model"
            ) from error
        raise BaseModelError(f"base_model: {ref}: cannot be loaded ({one_line(error)})") from error
    check_whole(ref, notes)
    if quantization is not None:
        _check_quantised(ref, model, quantization)
        keep_packing(model)
        return model
    return model.to(device)


def placement(device: str) -> dict[str, Any]:
    """Arguments for `from_pretrained` that read each tensor onto a GPU: the model is never whole in host memory.

    transformers wants accelerate for that; without it the model goes the long way.
    """
    if device.startswith("cuda") and importlib.util.find_spec("accelerate") is not None:
        return {"device_map": {"": device}}
    return {}


def _from_files(
    files: BaseFiles, config: Any, settings: dict[str, Any], trust_remote_code: bool, allow_pickle: bool
) -> tuple[Any, dict[str, Any]]:
    pickled = False
    if files.folder is not None:
        check_safetensors(files.folder)
        pickled = not safetensors_in(files.folder) and bool(pickles_in(files.folder))
        if pickled and not allow_pickle:
            raise BaseModelError(f"base_model: {files.place} {PICKLES_REFUSED}")

    def load(use_safetensors: bool) -> tuple[Any, dict[str, Any]]:
        return auto_class(config).from_pretrained(  # type: ignore[no-any-return]
            files.place,
            config=config,
            use_safetensors=use_safetensors,
            weights_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **settings,
        )

    try:
        return load(use_safetensors=not pickled)
    except OSError:
        # the hub tells only by failing that a model has no safetensors
        if files.folder is not None or not allow_pickle:
            raise
        return load(use_safetensors=False)


def _from_gguf(files: BaseFiles, config: Any, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    dense, notes = AutoModelForCausalLM.from_pretrained(
        files.place, gguf_file=files.gguf_file, dtype=settings["dtype"], output_loading_info=True
    )
    # a model that came out of GGUF counts as quantised and refuses to be moved, so its tensors go into a plain one
    plain, _ = model_from_tensors(type(dense), config, dense.state_dict(), settings)
    return plain, notes


def model_from_tensors(
    kind: Any, config: Any, state: dict[str, Any], settings: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """A model of a transformers class from tensors by their names in it, with what transformers noted in loading."""
    return kind.from_pretrained(  # type: ignore[no-any-return]
        None, config=config, state_dict=state, output_loading_info=True, **settings
    )


def check_whole(ref: str, notes: dict[str, Any]) -> None:
    """A tensor that the files lack would be random numbers, without a word."""
    missing = sorted(notes["missing_keys"])
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (" ..." if len(missing) > _SHOWN else "")
        raise BaseModelError(
            f"base_model: {ref}: the weights lack {len(missing)} tensors that the configuration calls for ({shown}); "
            "fetch the model again, or correct its config.json"
        )
    unexpected = sorted(notes["unexpected_keys"])
    if unexpected:
        logger.warning("%s: %d tensors are not used, such as %s", ref, len(unexpected), unexpected[0])


def _check_quantised(ref: str, model: Any, quantization: Quantization) -> None:
    plain = [name for name, module in adaptable_linears(model).items() if quantization_of(module) is None]
    if plain:
        raise BaseModelError(
            f"base_model: {ref}: {len(plain)} linear layers of a {model.config.model_type} model cannot be quantised "
            f"to {quantization}, such as {plain[0]}; set quantization: null for this actor"
        )
