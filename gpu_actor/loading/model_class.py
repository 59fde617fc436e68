"""Which class of transformers a base model is built and loaded with."""

from __future__ import annotations

from typing import Any


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
