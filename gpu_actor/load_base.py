"""From a base model's reference to a transformers model on its device."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from gpu_actor.errors import BaseModelError
from gpu_actor.inspect_base import load_config, one_line
from gpu_actor.model_store import resolve_base_model


def load_model(ref: str, device: str = "cpu", dtype: str = "float32", *, trust_remote_code: bool = False) -> Any:
    """Load a causal language model from a folder or the hub; weights are read from safetensors only.

    Raises:
        BaseModelError: It cannot be loaded; the message says why.
    """
    config = load_config(ref, trust_remote_code)
    try:
        return AutoModelForCausalLM.from_pretrained(
            resolve_base_model(ref),
            config=config,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        ).to(device)
    except Exception as error:
        raise BaseModelError(f"base_model: {ref}: cannot be loaded ({one_line(error)})") from error
