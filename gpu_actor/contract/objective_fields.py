"""Which fields each training objective has, and their defaults (TRL's). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Of the fields that only some objectives have: objective -> field -> default.
OBJECTIVE_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "sft": {"train_on_inputs": None},
    "dpo": {"beta": 0.1, "loss_type": "sigmoid", "label_smoothing": 0.0, "reference_adapter": None},
    "cpo": {"beta": 0.1, "loss_type": "sigmoid", "label_smoothing": 0.0, "cpo_alpha": 1.0},
    "orpo": {"beta": 0.1},
    "simpo": {"beta": 0.1, "gamma": 0.5, "label_smoothing": 0.0},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0, "reference_adapter": None},
}
PAIR_OBJECTIVES = ("dpo", "cpo", "orpo", "simpo")
REFERENCE_OBJECTIVES = ("dpo", "kto")


def with_objective_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `training` section, with the defaults of its objective where it leaves them open."""
    objective = fields.get("objective", "sft")
    filled = dict(fields)
    for name, default in OBJECTIVE_FIELDS.get(objective if isinstance(objective, str) else "", {}).items():
        if filled.get(name) is None and default is not None:
            filled[name] = default
    return filled


def stray_objective_field(objective: str, values: Mapping[str, Any]) -> str | None:
    """What is wrong with fields that the objective does not have; None when all is well.

    Args:
        objective: A known objective.
        values: The section's values; a field that only other objectives have must be unset (None or False).
    """
    for name in dict.fromkeys(name for fields in OBJECTIVE_FIELDS.values() for name in fields):
        value = values.get(name)
        if name in OBJECTIVE_FIELDS[objective] or value is None or value is False:
            continue
        owners = " or ".join(other for other, fields in OBJECTIVE_FIELDS.items() if name in fields)
        return (
            f"{name} ({value!r}) belongs to the objective {owners}, and this job's objective is {objective}; "
            f"remove {name} or set training.objective"
        )
    if values.get("label_smoothing") and values.get("loss_type") not in (None, "sigmoid"):
        return (
            f"label_smoothing ({values['label_smoothing']}) belongs to loss_type sigmoid, and this job's loss_type is "
            f"{values['loss_type']}; remove label_smoothing or set loss_type to sigmoid"
        )
    return None
