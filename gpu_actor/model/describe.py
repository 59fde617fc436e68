"""A description of a base model, made on fake tensors."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import NoReturn

from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.errors import BaseModelError
from gpu_actor.contract.limits import Limits, confine
from gpu_actor.loading.config_files import load_config
from gpu_actor.loading.layers import describe_model
from gpu_actor.loading.model_class import model_without_weights


def describe_base(ref: str, trust_remote_code: bool = False) -> BaseDescription:
    """Names and sizes of a base model's linear layers, from its configuration alone.

    Args:
        ref: Folder, .gguf file or hub id.
        trust_remote_code: Let the model's own Python code run. Off unless the operator wants it.

    Raises:
        BaseModelError: The reference is no causal language model that transformers can build.
    """
    from gpu_actor.model.count_activations import count_activations
    from gpu_actor.model.training_mode import foresee_training_mode

    config = load_config(ref, trust_remote_code)
    model = model_without_weights(ref, config, trust_remote_code)
    counted = count_activations(config, trust_remote_code=trust_remote_code)
    description = describe_model(ref, model)
    return replace(description, activations=counted, training_mode=foresee_training_mode(model))


def describe_within_limits(ref: str, trust_remote_code: bool, seconds: int, memory: int) -> BaseDescription:
    """As `describe_base`, in a process that ends with it: whoever sends a base model sends what is built here.

    Args:
        ref: As in `describe_base`.
        trust_remote_code: As in `describe_base`.
        seconds: Of processor time from now on.
        memory: Bytes that it may take beyond what the process has by now.

    Raises:
        BaseModelError: As `describe_base`, or memory or time did not suffice.
    """

    def over(*_: object) -> NoReturn:
        raise BaseModelError(_too_much(ref, f"{seconds} s of processor time"))

    signal.signal(signal.SIGXCPU, over)  # else nobody knows whether it was ended for that, or killed
    confine(Limits(memory, seconds))
    try:
        return describe_base(ref, trust_remote_code)
    except MemoryError:
        raise BaseModelError(_too_much(ref, f"{memory / 2**30:.0f} GiB")) from None


def _too_much(ref: str, limit: str) -> str:
    return f"base_model: {ref}: its configuration alone takes more than {limit} to build; is it damaged?"
