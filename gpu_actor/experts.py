"""Experts of a mixture: no linear layers in transformers, so no adapter of ours can change them."""

from __future__ import annotations

import re

from gpu_actor.errors import InvalidJobError
from gpu_actor.footprint import BaseDescription


def check_no_experts(base: BaseDescription, target_modules: str | list[str]) -> None:
    """Refuse targets that mean the experts of a mixture of experts, which are no linear layers.

    PEFT's `all-linear` takes the experts and the router of such a base along, as parameters; training a part of that
    under the same name would be another adapter.

    Raises:
        InvalidJobError: A target names experts, or is `all-linear` on a base that has them.
    """
    if not base.experts:
        return
    ends = sorted({linear.name.rsplit(".", 1)[-1] for linear in base.linears})
    if target_modules == "all-linear":
        raise InvalidJobError(
            f"lora.target_modules: all-linear would mean the experts of {base.ref} too ({base.experts[0]} and others), "
            f"which are no linear layers and cannot be trained; name the linear layers instead: {', '.join(ends)}"
        )
    for target in [target_modules] if isinstance(target_modules, str) else target_modules:
        meant = [name for name in base.experts if _names_expert(name, target, isinstance(target_modules, str))]
        if meant:
            raise InvalidJobError(
                f"lora.target_modules: {target!r} means expert weights such as {meant[0]}; these are no linear layers "
                f"and cannot be trained; the base model's linear layers are {', '.join(ends)}"
            )


def _names_expert(name: str, target: str, is_pattern: bool) -> bool:
    """Whether a target means an expert weight, or the module that holds it."""
    owner = name.rpartition(".")[0]
    if is_pattern:
        return any(re.fullmatch(target, full) for full in (name, owner))
    return any(full == target or full.endswith("." + target) for full in (name, owner))
