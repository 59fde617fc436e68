"""Which class of transformers a base model is built and loaded with."""

from __future__ import annotations

from typing import Any

from gpu_actor.contract.errors import BaseModelError
from gpu_actor.contract.messages import one_line


def auto_class(config: Any) -> Any:
    """The automatic class of transformers that makes a base model with this configuration, by `from_config` and so on.

    That is `AutoModelForCausalLM`, whose module names an adapter then has. Multimodal checkpoints whose configuration
    it does not have (Mistral 3, Qwen2-VL to Qwen3-VL) are built with the class that takes images and text, which is
    the one that their `architectures` name.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    kind = type(config)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM  # of any other configuration it says itself what is wrong


def model_without_weights(ref: str, config: Any, trust_remote_code: bool = False) -> Any:
    """A base model on torch's meta device: its modules with their names and shapes, and no values.

    Args:
        ref: How the jobs name it.
        config: Its configuration.
        trust_remote_code: Let the model's own Python code run.

    Raises:
        BaseModelError: transformers cannot build it.
    """
    import torch

    try:
        with torch.device("meta"):
            return auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise BaseModelError(f"base_model: {ref}: transformers cannot build this model ({one_line(error)})") from None
