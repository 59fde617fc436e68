"""Which linear layers of a base model an adapter changes, by PEFT's rules, and with what rank and scale."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from gpu_actor.adapters.kinds import kind_of
from gpu_actor.adapters.layer_plan import LayerPlan
from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.errors import InvalidJobError
from gpu_actor.contract.expressions import ending_matches, layer_numbers, whole_matches
from gpu_actor.contract.lora_config import LoraConfig

_SHOWN_NAMES = 12
# A name without a pattern: the first number that follows two names, as in model.layers.3.mlp.
_ANY_LAYER = r".*?\.[^.]*\.(?P<index>\d+)\."


def plan_layers(base: BaseDescription, lora: LoraConfig) -> tuple[LayerPlan, ...]:
    """The layers that an adapter changes, in the model's order.

    Args:
        base: The base model.
        lora: The adapter.

    Raises:
        InvalidJobError: A target, an excluded module, a layer number or a pattern matches nothing, or nothing is
            left, a target means experts, or a layer is too small for the rank; the message lists what exists.
    """
    check_no_experts(base, lora.target_modules)
    names = select_names([linear.name for linear in base.linears], lora)
    for field, patterns in (("lora.rank_pattern", lora.rank_pattern), ("lora.alpha_pattern", lora.alpha_pattern)):
        idle = [key for key, fitting in ending_matches(list(patterns), names, field).items() if not fitting]
        if idle:
            raise InvalidJobError(
                f"{field}: {_quoted(idle)} matches no layer that the adapter changes; they end in "
                f"{_endings(names)} (whole names look like {names[0]!r})"
            )
    ranks, scalings = lora.ranks_of(names), lora.scalings_of(names)
    plans = tuple(
        LayerPlan(s.name, s.in_features, s.out_features, ranks[s.name], scalings[s.name])
        for s in base.linears
        if s.name in ranks
    )
    kind = kind_of(lora)
    for plan in plans:
        kind.check(plan)
    return plans


def select_names(names: Sequence[str], lora: LoraConfig) -> list[str]:
    """The module names that targets, layer numbers and exclusions leave, in the model's order.

    Raises:
        InvalidJobError: One of the three matches nothing, or nothing is left.
    """
    selected = match_names(names, lora.target_modules)
    if lora.layers_to_transform is not None:
        selected = _in_layers(selected, lora)
    if lora.exclude_modules is not None:
        dropped = set(_matching(names, lora.exclude_modules, "lora.exclude_modules"))
        selected = [name for name in selected if name not in dropped]
    if not selected:
        raise InvalidJobError(
            f"lora.exclude_modules: {lora.exclude_modules!r} excludes every layer that lora.target_modules names; "
            f"leave some"
        )
    return selected


def match_names(names: Iterable[str], target_modules: str | list[str]) -> list[str]:
    """The module names that `target_modules` selects, by PEFT's rules, in the model's order.

    Raises:
        InvalidJobError: A target matches nothing; the message lists the names that exist.
    """
    names = list(names)
    return names if target_modules == "all-linear" else _matching(names, target_modules, "lora.target_modules")


def _matching(names: Sequence[str], wanted: str | list[str], field: str) -> list[str]:
    """The names that a regular expression matches as a whole, or that a list gives whole or by their endings."""
    if isinstance(wanted, str):
        matched = whole_matches(wanted, names, field)
        missing = [] if matched else [wanted]
    else:
        ends = {target: [n for n in names if n == target or n.endswith("." + target)] for target in wanted}
        missing = [target for target, matches in ends.items() if not matches]
        chosen = {name for matches in ends.values() for name in matches}
        matched = [name for name in names if name in chosen]
    if missing:
        remedy = "name some of these or write all-linear" if field == "lora.target_modules" else "name some of these"
        raise InvalidJobError(
            f"{field}: {_quoted(missing)} matches no linear layer of the base model; "
            f"it has {_endings(names)} (whole names look like {names[0]!r}); {remedy}"
        )
    return matched


def _in_layers(names: Sequence[str], lora: LoraConfig) -> list[str]:
    """The names whose layer number is wanted. A target given by its whole name stays, as in PEFT."""
    given = lora.layers_to_transform
    wanted = [given] if isinstance(given, int) else list(given or [])
    numbers = _layer_numbers(names, lora.layers_pattern)
    present = sorted({number for number in numbers.values() if number is not None})
    if not present:
        what = (
            "a number" if lora.layers_pattern is None else f"lora.layers_pattern {lora.layers_pattern!r} and a number"
        )
        raise InvalidJobError(
            f"lora.layers_to_transform: no targeted layer has {what} in its name; they look like {names[0]!r}"
        )
    missing = sorted(set(wanted) - set(present))
    if missing:
        raise InvalidJobError(
            f"lora.layers_to_transform: {', '.join(map(str, missing))} is no layer of the base model; "
            f"its targeted layers have the numbers {present[0]} to {present[-1]}"
        )
    whole = lora.target_modules if isinstance(lora.target_modules, list) else []
    return [name for name in names if numbers[name] in wanted or name in whole]


def _layer_numbers(names: Sequence[str], pattern: str | list[str] | None) -> dict[str, int | None]:
    if lists := [pattern] if isinstance(pattern, str) else pattern:
        return layer_numbers(lists, names, "lora.layers_pattern")
    matches = {name: re.match(_ANY_LAYER, name) for name in names}
    return {name: int(match["index"]) if match else None for name, match in matches.items()}


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _endings(names: Iterable[str]) -> str:
    endings = sorted({name.rsplit(".", 1)[-1] for name in names})
    return ", ".join(endings[:_SHOWN_NAMES]) + (" ..." if len(endings) > _SHOWN_NAMES else "")


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
