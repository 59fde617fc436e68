"""PEFT's `adapter_config.json`, in both directions, and what of PEFT Loray does not have."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gpu_actor.contract import file_names
from gpu_actor.contract.errors import AdapterError
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.contract.peft_fields import unsupported_message

_START_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_STARTS = (True, False, "gaussian", "orthogonal")  # the saved values are loaded over them
_OFF: tuple[Any, ...] = (None, False, "none", {}, [], "")
# Facts about the adapter or its making that change nothing here.
_NOTES = (
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("fan_in_fan_out", "init_weights", "megatron_core", "qalora_group_size", "runtime_config"),
)
_SHARED = ("peft_type", "r", "target_modules", "layers_to_transform", "layers_pattern")
_LORA = ("lora_alpha", "lora_dropout", "exclude_modules", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")
_VERA = ("vera_dropout", "d_initial", "projection_prng_key", "save_projection")
_REQUIRED = {"LORA": ("r", "lora_alpha", "target_modules"), "VERA": ("r", "target_modules")}


def read_peft_config(folder: Path) -> LoraConfig:
    """The kind and shape of a saved adapter.

    Args:
        folder: Where its `adapter_config.json` is.

    Raises:
        AdapterError: The file is missing or damaged, or asks for what Loray does not have.
    """
    path = folder / file_names.ADAPTER_CONFIG
    try:
        saved = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(
            f"{path}: not a readable adapter configuration ({error}); export the adapter again"
        ) from None
    if not isinstance(saved, dict):
        raise AdapterError(f"{path}: not a readable adapter configuration (no JSON object); export the adapter again")
    if problem := unsupported(saved):
        raise AdapterError(f"{path}: {problem}")
    given = {name: saved[name] for name in (*_SHARED, *_LORA, *_VERA) if saved.get(name) is not None}
    try:
        return LoraConfig.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise AdapterError(f"{path}: {where}{': ' if where else ''}{first['msg']}; export the adapter again") from None


def unsupported(saved: Mapping[str, Any]) -> str | None:
    """What of an adapter's configuration Loray does not have or cannot use, in words; None when it has all."""
    kind = saved.get("peft_type")
    if kind not in _REQUIRED:
        return f"has the peft_type {kind!r}; allowed: 'LORA', 'VERA'"
    if missing := [name for name in _REQUIRED[kind] if saved.get(name) is None]:
        return f"lacks {missing[0]}; save the adapter again with PEFT"
    start = saved.get("init_lora_weights", True)
    if str(start).split("_niter_")[0] in _START_CHANGES_BASE:
        return (
            f"was saved with init_lora_weights {start!r}, whose values go with a base that was changed; save it again "
            f"with save_pretrained(..., path_initial_model_for_weight_conversion=...), which makes it a plain adapter"
        )
    if start not in _STARTS:
        return (
            f"has init_lora_weights {start!r}, which PEFT has and Loray does not; allowed: true, gaussian, orthogonal"
        )
    known = {*_SHARED, *(_LORA if kind == "LORA" else _VERA), *_NOTES, "init_lora_weights"}
    for name, value in saved.items():
        if name not in known and value not in _OFF:
            if words := unsupported_message(name):
                return f"has {name} {value!r}, which {words.removesuffix('; leave it out')}"
            return f"has {name} {value!r}, which is not known to Loray"
    return None


def peft_config(lora: LoraConfig, names: Sequence[str], base_model: str, *, transposed: bool) -> dict[str, Any]:
    """The contents of `adapter_config.json`.

    An adapter that starts from the base is written as the plain one that PEFT converts it to: of twice the rank, at
    the same scale, for the unchanged base.

    Args:
        lora: Kind and shape.
        names: The modules that the adapter changes.
        base_model: How the job names its base model.
        transposed: Whether the base keeps weights as [in, out].
    """
    lora = _converted(lora) if lora.starts_from_base else lora
    own = lora.model_dump(include={*_SHARED, *(_VERA if lora.peft_type == "VERA" else _LORA)})
    if lora.target_modules == "all-linear":
        own["target_modules"] = _endings(names)
    notes = {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": True,
        "modules_to_save": None,
    }
    if lora.peft_type == "VERA":
        return {**own, **notes, "init_weights": True}
    own["lora_alpha"] = _whole(lora.lora_alpha)
    own["alpha_pattern"] = {key: _whole(value) for key, value in lora.alpha_pattern.items()}
    return {**own, **notes, "init_lora_weights": lora.init_lora_weights}


def _converted(lora: LoraConfig) -> LoraConfig:
    """Twice the rank and alpha (by rsLoRA's scale: alpha times the root of 2), so that the scale stays."""
    factor = math.sqrt(2.0) if lora.use_rslora else 2.0
    changes = {
        "r": 2 * lora.r,
        "lora_alpha": factor * lora.lora_alpha,
        "rank_pattern": {key: 2 * rank for key, rank in lora.rank_pattern.items()},
        "alpha_pattern": {key: factor * alpha for key, alpha in lora.alpha_pattern.items()},
        "init_lora_weights": True,
    }
    return lora.model_copy(update=changes)


def _endings(names: Sequence[str]) -> list[str]:
    """What a list of targets must hold to mean these modules; a bare number would mean others too."""
    endings = sorted({name.rsplit(".", 1)[-1] for name in names})
    return sorted(names) if any(ending.isdigit() for ending in endings) else endings


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value
