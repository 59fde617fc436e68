"""A base model's configuration from its config.json or GGUF file, without its weights and without torch."""

from __future__ import annotations

import importlib.util
import socket
from typing import Any

from gpu_actor.contract.errors import BaseModelError
from gpu_actor.contract.messages import one_line
from gpu_actor.loading.chatglm import glm_config, is_chatglm
from gpu_actor.paths.locations import BaseFiles, find_base, looks_like_path

# Ten times and more what the largest models have.
_MOST = {
    "num_hidden_layers": 2_000,
    "hidden_size": 2**19,
    "intermediate_size": 2**21,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**16,
    "vocab_size": 2**24,
    "num_experts": 2**14,
    "num_local_experts": 2**14,
    "n_routed_experts": 2**14,
}


def load_config(ref: str, trust_remote_code: bool = False) -> Any:
    """The `transformers` configuration of a base model, from its config.json or its GGUF file.

    Raises:
        BaseModelError: There is none, it is damaged, it asks for code of its own, or it is quantised already.
    """
    from transformers import AutoConfig

    files = find_base(ref)
    if files.gguf_file is not None:
        return _of_possible_size(ref, _gguf_config(ref, files))
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
        config = AutoConfig.from_pretrained(files.place, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _unusable(ref, error) from None
    return _of_possible_size(ref, config)


def _of_possible_size(ref: str, config: Any) -> Any:
    """The configuration, unless its sizes are beyond every model's: building it would go on for hours.

    Raises:
        BaseModelError: They are.
    """
    for part in (config, config.get_text_config(decoder=True)):
        common = {own: name for name, own in type(part).attribute_map.items()}  # n_layer -> num_hidden_layers
        for own, size in part.to_dict().items():
            most = _MOST.get(common.get(own, own))
            if most is not None and isinstance(size, int) and size > most:
                raise BaseModelError(
                    f"base_model: {ref}: {own} is {size:,} in its configuration; allowed: up to {most:,}. Is the file "
                    "damaged?"
                )
    return config


def read_config(ref: str) -> dict[str, Any]:
    """The config.json of a base model as it stands.

    Raises:
        BaseModelError: There is none, or it is no JSON object.
    """
    from transformers import PreTrainedConfig

    files = find_base(ref)
    if looks_like_path(ref) and files.folder is None:
        raise BaseModelError(
            f"base_model: {ref}: {socket.gethostname()} has no such folder; put the model there, on every node that is "
            "to host it, or give its id on the hub"
        )
    try:
        raw: dict[str, Any] = PreTrainedConfig.get_config_dict(files.place)[0]
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
