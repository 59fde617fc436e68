"""Experts of a mixture: no linear layers in transformers, so no adapter of ours can change them."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_actor.contract.errors import InvalidJobError
from gpu_actor.contract.expressions import whole_matches
from gpu_actor.contract.footprint import BaseDescription


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
        meant = _meant(base.experts, target, is_pattern=isinstance(target_modules, str))
        if meant:
            raise InvalidJobError(
                f"lora.target_modules: {target!r} means expert weights such as {meant[0]}; these are no linear layers "
                f"and cannot be trained; the base model's linear layers are {', '.join(ends)}"
            )


def _meant(experts: Sequence[str], target: str, *, is_pattern: bool) -> list[str]:
    """The expert weights that a target means, by their own names or by those of the modules that hold them."""
    owners = [name.rpartition(".")[0] for name in experts]
    full = [*experts, *owners]
    if is_pattern:
        hit = set(whole_matches(target, full, "lora.target_modules"))
    else:
        hit = {name for name in full if name == target or name.endswith("." + target)}
    return [name for name, owner in zip(experts, owners, strict=True) if name in hit or owner in hit]
