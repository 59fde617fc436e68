"""Targets that are refused: what Loray cannot train, and what PEFT would not load as it was trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.errors import InvalidJobError
from gpu_actor.contract.expressions import whole_matches
from gpu_actor.contract.lora_config import LoraConfig

_SHOWN_NAMES = 12
# PEFT refuses these endings in families with Mamba layers, whose kernels read the weight beside the module.
_PEFT_REFUSES = ("out_proj", "conv1d")
_MAMBA_FAMILIES = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")


def matches_of(names: Sequence[str], targets: str | list[str], field: str) -> dict[str, list[str]]:
    """The names that each target matches, by PEFT's rules: an expression as a whole, a listed one whole or by its end.

    Args:
        names: Of modules.
        targets: A regular expression, or a list.
        field: Of the job that holds them; errors name it.

    Raises:
        InvalidJobError: The expression takes too long.
    """
    if isinstance(targets, str):
        return {targets: whole_matches(targets, names, field)}
    return {target: [name for name in names if name == target or name.endswith("." + target)] for target in targets}


def check_no_experts(base: BaseDescription, target_modules: str | list[str]) -> None:
    """Refuse targets that mean the experts of a mixture of experts, which are no linear layers.

    PEFT's `all-linear` takes the experts and the router of such a base along, as parameters; training a part of that
    under the same name would be another adapter.

    Raises:
        InvalidJobError: A target names experts, or is `all-linear` on a base that has them.
    """
    if not base.experts:
        return
    field, names = "lora.target_modules", [linear.name for linear in base.linears]
    ends = endings(name for name in names if _ending(name) not in base.expert_endings)
    if target_modules == "all-linear":
        raise InvalidJobError(
            f"{field}: all-linear would mean the experts of {base.ref} too ({base.experts[0]} and others), "
            f"which are no linear layers and cannot be trained; name the linear layers instead: {ends}"
        )
    owners = sorted({name.rpartition(".")[0] for name in base.experts})
    holders, weights = (matches_of(experts, target_modules, field) for experts in (owners, base.experts))
    linears = matches_of(names, target_modules, field)
    for target in linears:
        # a shared expert's down_proj is a layer, though the experts' weight is called so too: PEFT takes the layer
        if meant := holders[target] or ([] if linears[target] else weights[target]):
            raise InvalidJobError(
                f"{field}: {target!r} means expert weights such as {meant[0]}; these are no linear layers and cannot "
                f"be trained (PEFT does it by target_parameters, which Loray does not have); the base model's linear "
                f"layers are {ends}"
            )


def check_in_text_body(base: BaseDescription, lora: LoraConfig) -> None:
    """Refuse targets that mean linear layers of the output head, or nothing but layers that no text runs through.

    `all-linear`, and a name that image towers have as well as the language model, mean the language model's layers:
    on text the others would be saved as they start, with an update of zero.

    Raises:
        InvalidJobError: A target means such layers.
    """
    own = [linear.name for linear in base.linears]
    in_head = [*base.head_linears]
    if lora.target_modules != "all-linear":
        field = "lora.target_modules"
        in_head = [name for names in matches_of(in_head, lora.target_modules, field).values() for name in names]
        in_body = matches_of(own, lora.target_modules, field)
        for target, names in matches_of(base.tower_linears, lora.target_modules, field).items():
            if names and not in_body[target]:
                raise InvalidJobError(
                    f"{field}: {target!r} means layers that read images or sound, such as {names[0]}; no text runs "
                    f"through them, so they would not be trained; the language model's linear layers are "
                    f"{endings(own)}"
                )
    if in_head and lora.exclude_modules is not None:
        excluded = matches_of(in_head, lora.exclude_modules, "lora.exclude_modules").values()
        in_head = [name for name in in_head if not any(name in names for names in excluded)]
    if in_head:
        raise InvalidJobError(
            f"lora.target_modules: {lora.target_modules!r} means {in_head[0]} too, which belongs to the output head "
            f"and cannot be trained; name some of {endings(own)}, or leave it out with lora.exclude_modules"
        )


def check_peft_loads(base: BaseDescription, lora: LoraConfig, targeted: Sequence[str], selected: Sequence[str]) -> None:
    """Refuse layers that PEFT, on this base, refuses or takes for others.

    PEFT still reads the names that experts had when each was a linear layer: on a base of a family that has changed so
    it turns `gate_proj` of any layer into the parameter of all experts, and an adapter of a shared expert is lost.
    VeRA is not concerned.

    Args:
        base: The base model.
        lora: The adapter.
        targeted: The names that `target_modules` means.
        selected: Those that layer numbers and exclusions leave.

    Raises:
        InvalidJobError: There is such a layer; the message says which names do work.
    """
    if lora.peft_type != "LORA":
        return
    all_names = [linear.name for linear in base.linears]
    refused = {*base.expert_endings, *(_PEFT_REFUSES if base.model_type in _MAMBA_FAMILIES else ())}
    renamed = set(base.renamed_linears)
    if lost := [name for name in selected if _ending(name) in refused or name in renamed]:
        usable = endings(name for name in all_names if _ending(name) not in refused | set(map(_ending, renamed)))
        if _ending(lost[0]) in base.expert_endings:
            why = (
                f"on a {base.model_type} base PEFT takes this name for the parameters of the experts, which it trains "
                f"by target_parameters and Loray does not"
            )
        elif lost[0] in renamed:
            why = f"on a {base.model_type} base it takes the layer's name in an adapter file for another one"
        else:
            why = f"PEFT refuses this layer on a {base.model_type} base"
        raise InvalidJobError(
            f"lora.target_modules: {lora.target_modules!r} means {lost[0]}, and PEFT would not load the result: {why}; "
            f"the names that work are {usable}"
        )
    if base.expert_endings and isinstance(lora.target_modules, str):
        wanted = {_ending(name) for name in targeted}
        if more := [name for name in all_names if _ending(name) in wanted and name not in set(targeted)]:
            raise InvalidJobError(
                f"lora.target_modules: on a {base.model_type} base PEFT reads the expression {lora.target_modules!r} "
                f"as {', '.join(sorted(wanted))} of every layer, which is more ({more[0]}); give the names as a list"
            )


def endings(names: Iterable[str]) -> str:
    """The last parts of some module names, as messages show them."""
    ends = sorted({_ending(name) for name in names})
    return ", ".join(ends[:_SHOWN_NAMES]) + (" ..." if len(ends) > _SHOWN_NAMES else "")


def _ending(name: str) -> str:
    return name.rsplit(".", 1)[-1]
