"""Records of KTO: a sample of any format that has a prompt, and a `label` that says whether its answer is wanted."""

from __future__ import annotations

import dataclasses

from gpu_actor.contract.config import DatasetFormat
from gpu_actor.contract.errors import DataError
from gpu_actor.contract.messages import shorten
from gpu_actor.data.meaning import kind_of
from gpu_actor.data.readers.record import Record
from gpu_actor.data.records import Chat, Plain, Tokens, Unpaired

LABEL = "label"
_VALUES = {"true": True, "false": False, "1": True, "0": False}
_KINDS = ("label", "0-1 label")
_WHOLE_CONVERSATIONS: tuple[DatasetFormat, ...] = ("messages", "sharegpt", "alpaca")


def read_label(record: Record) -> bool:
    """Whether the answer of a record is wanted.

    Raises:
        DataError: It does not say so.
    """
    value = record.get(LABEL)
    if value is None:
        other = next((name for name, held in record.items() if name != LABEL and kind_of(name, held) in _KINDS), None)
        remedy = f"set dataset.columns: {{label: {other}}}" if other else "true for a good answer, false for a bad one"
        raise DataError(f"label: missing; training.objective kto has to know whether the answer is wanted: {remedy}")
    named = _VALUES.get(str(value).strip().lower()) if isinstance(value, bool | int | str) else None
    if named is None:
        raise DataError(
            f"label: {shorten(value)} does not say whether the answer is wanted; allowed: true, false, 1, 0"
        )
    return named


def unpaired(sample: Plain | Chat | Tokens, desirable: bool, data_format: DatasetFormat) -> Unpaired:
    """A sample as KTO learns it: of a whole conversation the label is about the last answer, all else is the prompt.

    Raises:
        DataError: Its prompt cannot be told from its answer.
    """
    if isinstance(sample, Tokens) and sample.labels is None:
        raise DataError(
            "labels: missing; training.objective kto has to know which tokens are the answer: give one label per "
            "token, -100 on the prompt"
        )
    if isinstance(sample, Chat) and data_format in _WHOLE_CONVERSATIONS:
        sample = dataclasses.replace(sample, learned=sample.learned[-1:])
    return Unpaired(sample, desirable)
