"""A base model's configuration from its config.json or GGUF file, without its weights and without torch."""

from __future__ import annotations

import importlib.util
from typing import Any

from gpu_actor.contract.errors import BaseModelError
from gpu_actor.contract.locations import BaseFiles, find_base
from gpu_actor.contract.messages import one_line
from gpu_actor.loading.chatglm import glm_config, is_chatglm


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
