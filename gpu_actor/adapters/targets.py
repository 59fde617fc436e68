"""Which linear layers of a base model an adapter changes, by PEFT's rules, and with what rank and scale."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from gpu_actor.adapters.forbidden_targets import (
    check_in_text_body,
    check_no_experts,
    check_peft_loads,
    endings,
    matches_of,
)
from gpu_actor.adapters.kinds import kind_of
from gpu_actor.adapters.layer_plan import LayerPlan
from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.errors import InvalidJobError
from gpu_actor.contract.expressions import ending_matches, layer_numbers
from gpu_actor.contract.lora_config import LoraConfig

# A name without a pattern: the first number that follows two names, as in model.layers.3.mlp.
_ANY_LAYER = r".*?\.[^.]*\.(?P<index>\d+)\."


def plan_layers(base: BaseDescription, lora: LoraConfig) -> tuple[LayerPlan, ...]:
    """The layers that an adapter changes, in the model's order.

    Args:
        base: The base model.
        lora: The adapter.

    Raises:
        InvalidJobError: A target, an excluded module, a layer number or a pattern matches nothing, or nothing is
            left, a target means what cannot be trained or what PEFT would not load, or a layer is too small for the
            rank; the message lists what exists.
    """
    check_no_experts(base, lora.target_modules)
    check_in_text_body(base, lora)
    every = [linear.name for linear in base.linears]
    names = select_names(every, lora, others=(*base.head_linears, *base.tower_linears))
    check_peft_loads(base, lora, match_names(every, lora.target_modules), names)
    for field, patterns in (("lora.rank_pattern", lora.rank_pattern), ("lora.alpha_pattern", lora.alpha_pattern)):
        idle = [key for key, fitting in ending_matches(list(patterns), names, field).items() if not fitting]
        if idle:
            raise InvalidJobError(
                f"{field}: {_quoted(idle)} matches no layer that the adapter changes; they end in "
                f"{endings(names)} (whole names look like {names[0]!r})"
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


def as_peft_reads(base: BaseDescription, lora: LoraConfig, plans: Iterable[LayerPlan]) -> LoraConfig:
    """The adapter with the targets that mean its layers and no others to PEFT.

    On a multimodal base `q_proj` may mean layers of the image tower too, and so may `all-linear`; there whole names
    are given.
    """
    if not base.tower_linears:
        return lora
    return lora.model_copy(update={"target_modules": [plan.name for plan in plans]})


def select_names(names: Sequence[str], lora: LoraConfig, others: Sequence[str] = ()) -> list[str]:
    """The module names that targets, layer numbers and exclusions leave, in the model's order.

    Args:
        names: Of the linear layers that can be adapted.
        lora: The adapter.
        others: Of further linear layers of the model, which may be excluded.

    Raises:
        InvalidJobError: One of the three matches nothing, or nothing is left.
    """
    selected = match_names(names, lora.target_modules)
    if lora.layers_to_transform is not None:
        selected = _in_layers(selected, lora)
    if lora.exclude_modules is not None:
        dropped = set(_matching([*names, *others], lora.exclude_modules, "lora.exclude_modules"))
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
    matches = matches_of(names, wanted, field)
    missing = [target for target, of_target in matches.items() if not of_target]
    chosen = {name for of_target in matches.values() for name in of_target}
    if missing:
        remedy = "name some of these or write all-linear" if field == "lora.target_modules" else "name some of these"
        raise InvalidJobError(
            f"{field}: {_quoted(missing)} matches no linear layer of the base model; "
            f"it has {endings(names)} (whole names look like {names[0]!r}); {remedy}"
        )
    return [name for name in names if name in chosen]


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
