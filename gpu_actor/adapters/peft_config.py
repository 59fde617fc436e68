"""PEFT's `adapter_config.json`, in both directions, and what of PEFT Loray does not have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gpu_actor.adapters.kinds import KINDS, kind_of
from gpu_actor.adapters.kinds.base import COMMON_FIELDS, AdapterKind
from gpu_actor.contract.errors import AdapterError
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.contract.peft_fields import unsupported_message
from gpu_actor.paths import file_names
from gpu_actor.storage.checksums import check_file, read_plain

_START_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_STARTS = (True, False, "gaussian", "orthogonal")  # the saved values are loaded over them
_OFF: tuple[Any, ...] = (None, False, "none", {}, [], "")
# Facts about the adapter or its making that change nothing here.
_NOTES = (
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("fan_in_fan_out", "init_weights", "megatron_core", "qalora_group_size", "runtime_config"),
)
_BY_TYPE: Mapping[str, type[AdapterKind]] = {kind.peft_type: kind for kind in KINDS}


def read_peft_config(folder: Path) -> LoraConfig:
    """The kind and shape of a saved adapter.

    Args:
        folder: Where its `adapter_config.json` is.

    Raises:
        AdapterError: The file is missing or damaged, or asks for what Loray does not have.
    """
    path = folder / file_names.ADAPTER_CONFIG
    check_file(path)
    try:
        saved = json.loads(read_plain(path))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(
            f"{path}: not a readable adapter configuration ({error}); export the adapter again"
        ) from None
    if not isinstance(saved, dict):
        raise AdapterError(f"{path}: not a readable adapter configuration (no JSON object); export the adapter again")
    if problem := unsupported(saved):
        raise AdapterError(f"{path}: {problem}")
    fields = (*COMMON_FIELDS, *(field for kind in _BY_TYPE.values() for field in kind.fields))
    given = {name: saved[name] for name in fields if saved.get(name) is not None}
    try:
        return LoraConfig.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise AdapterError(f"{path}: {where}{': ' if where else ''}{first['msg']}; export the adapter again") from None


def lack_of_weights(folder: Path) -> str | None:
    """What an adapter's folder lacks, in words that end with the way out; None if its weights lie there."""
    if (folder / file_names.ADAPTER_WEIGHTS).is_file():
        return None
    pickled = (folder / file_names.PICKLED_ADAPTER).is_file()
    why = f"; {file_names.PICKLED_ADAPTER} is a pickle, which can run code when read" if pickled else ""
    return f"lacks {file_names.ADAPTER_WEIGHTS}{why}; save the adapter again with PEFT"


def unsupported(saved: Mapping[str, Any]) -> str | None:
    """What of an adapter's configuration Loray does not have or cannot use, in words; None when it has all."""
    peft_type = saved.get("peft_type")
    kind = _BY_TYPE.get(peft_type) if isinstance(peft_type, str) else None
    if kind is None:
        return f"has the peft_type {peft_type!r}; allowed: {', '.join(map(repr, _BY_TYPE))}"
    if missing := [name for name in kind.required if saved.get(name) is None]:
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
    supported = {*COMMON_FIELDS, *kind.fields, *_NOTES, "init_lora_weights"}
    for name, value in saved.items():
        if name not in supported and value not in _OFF:
            if problem := unsupported_message(name):
                return f"has {name} {value!r}, which {problem.removesuffix('; leave it out')}"
            return f"has {name} {value!r}, which is not known to Loray"
    return None


def peft_config(lora: LoraConfig, names: Sequence[str], base_model: str, *, transposed: bool) -> dict[str, Any]:
    """The contents of `adapter_config.json`.

    Args:
        lora: Kind and shape.
        names: The modules that the adapter changes.
        base_model: How the job names its base model.
        transposed: Whether the base keeps weights as [in, out].
    """
    saved = kind_of(kind_of(lora).as_saved())
    fields = saved.config()
    if lora.target_modules == "all-linear":
        fields["target_modules"] = _endings(names)
    notes = {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": True,
        "modules_to_save": None,
    }
    return {**fields, **notes, **saved.config_of_start()}


def _endings(names: Sequence[str]) -> list[str]:
    """What a list of targets must hold to mean these modules; a bare number would mean others too."""
    endings = sorted({name.rsplit(".", 1)[-1] for name in names})
    return sorted(names) if any(ending.isdigit() for ending in endings) else endings
