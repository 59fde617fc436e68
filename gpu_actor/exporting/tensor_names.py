"""What the tensors of a checkpoint are called in the model that transformers makes of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def names_in_model(model: Any, stored: Iterable[str]) -> dict[str, str]:
    """By its name in the file, the parameter of the model that a stored tensor is, as `from_pretrained` finds it.

    Tensors that are a part of a parameter, or hold several (experts that are stored one by one), are left out.

    Args:
        model: Of transformers; may be on the meta device.
        stored: Names in the files.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    parameters, prefix = model.state_dict(), model.base_model_prefix
    found = {}
    for name in stored:
        own, part_of = rename_source_key(name, renamings, converters, prefix, parameters)
        if own not in parameters and name in parameters:  # a rule for old names that meets a new one
            own, part_of = rename_source_key(name, [], [], prefix, parameters)
        if part_of is None:
            found[name] = own
    return found
