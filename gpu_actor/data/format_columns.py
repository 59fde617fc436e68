"""The columns of each data format: which format a record is of, and which columns it may not have.

Columns that no format has (an `id`, a `source`) are allowed, as data sets have them. A column that would change the
meaning of a sample, and is not supported, is refused. Free of torch and tokenizers.
"""

from __future__ import annotations

import difflib
from typing import Any

from gpu_actor.contract.config import DatasetFormat
from gpu_actor.contract.errors import DataError
from gpu_actor.contract.messages import shorten
from gpu_actor.data.preferences import PAIR_COLUMNS, pair_fields
from gpu_actor.data.readers.record import Record

# In the order in which `auto` tries them: the first format whose columns are all there is taken.
_REQUIRED: dict[DatasetFormat, tuple[str, ...]] = {
    "tokens": ("input_ids",),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
_OPTIONAL: dict[DatasetFormat, tuple[str, ...]] = {
    "tokens": ("labels",),
    "messages": ("system", "tools"),
    "sharegpt": ("system", "tools"),
    "alpaca": ("input", "system", "history"),
    "prompt_completion": ("system", "tools"),
}
# What changes a conversation wherever it stands: a format or layout without a place for it refuses it. A text and
# token ids are whole as they are; such columns beside them say where they come from.
_CONTEXT = ("system", "tools", "history", "image", "images", "video", "videos", "audio", "audios")
_WITHOUT_CONTEXT: tuple[DatasetFormat, ...] = ("text", "tokens")
_TEMPLATE_ARGUMENTS = {"chat_template_kwargs": "put what they change into dataset.chat_template and remove the field"}
_UNSUPPORTED: dict[DatasetFormat, dict[str, str]] = {
    "tokens": {
        "attention_mask": "give input_ids without padding and remove the field",
        "position_ids": "positions count from 0 in each sample; remove the field",
        "loss_mask": "write labels instead, with -100 where no loss is taken",
    },
    **dict.fromkeys(("messages", "sharegpt", "prompt_completion", "preference"), _TEMPLATE_ARGUMENTS),
}
_MISSPELT = 0.85  # least likeness of two names: "story" is no misspelt "history", "inputs" and "label" are misspelt


def detect_format(record: Record, pairs: bool = False) -> DatasetFormat:
    """The format that a record's columns belong to.

    Args:
        record: The first record of a data set.
        pairs: Whether preference pairs are wanted. If not, a record is a pair only if it is of no other format.

    Raises:
        DataError: They belong to none.
    """
    is_pair = any(all(name in record for name in names) for names in PAIR_COLUMNS)
    if is_pair and pairs:
        return "preference"
    # Beside two answers, a conversation is their prompt, which alone has no last answer to learn.
    if is_pair and ("conversations" in record or isinstance(record.get("chosen"), dict)):
        return "preference"
    for name, required in _REQUIRED.items():
        if all(field in record for field in required):
            return name
    if is_pair:
        return "preference"
    formats = "; ".join(f"{name}: {', '.join(required)}" for name, required in _REQUIRED.items())
    formats += f"; preference: {' or '.join(', '.join(names) for names in PAIR_COLUMNS)}"
    raise DataError(f"the fields {shorten(list(record))} belong to no known format ({formats})")


def columns_read(record: Record, data_format: DatasetFormat) -> frozenset[str]:
    """The columns that a record's format, and of pairs its layout, reads."""
    if data_format == "preference":
        return pair_fields(record)
    return frozenset((*_REQUIRED[data_format], *_OPTIONAL.get(data_format, ())))


def check_columns(record: Record, data_format: DatasetFormat) -> None:
    """Check that a record has the columns of its format, and none that would be lost.

    Raises:
        DataError: A column is missing, misspelt or not supported; its name comes first.
    """
    _check_required(record, data_format)
    _check_supported(record, data_format)
    _check_spelling(record, data_format)
    _check_context(record, data_format)


def is_blank(value: Any) -> bool:
    """Whether a column says nothing: it is missing, null or empty, also where a CSV file has that as text."""
    return value.strip() in ("", "[]", "null") if isinstance(value, str) else not value


def _check_required(record: Record, data_format: DatasetFormat) -> None:
    required = _REQUIRED.get(data_format, ())
    for field in required:
        if field not in record:
            close = difflib.get_close_matches(field, record, n=1)
            hint = f"; did you mean it by {shorten(close[0])}?" if close else ""
            raise DataError(
                f"{field}: missing; a record of the format {data_format} needs {' and '.join(required)}, "
                f"this one has {shorten(list(record))}{hint}"
            )


def _check_supported(record: Record, data_format: DatasetFormat) -> None:
    for field, remedy in _UNSUPPORTED.get(data_format, {}).items():
        if field == "attention_mask" and _hides_nothing(record.get(field)):
            continue
        if record.get(field):
            raise DataError(f"{field}: not supported in the format {data_format}; {remedy}")


def _hides_nothing(mask: Any) -> bool:
    """Whether an attention mask is all ones, as every tokenizer writes it for a sample without padding."""
    return isinstance(mask, list) and all(value == 1 for value in mask)


def _check_spelling(record: Record, data_format: DatasetFormat) -> None:
    optional = _OPTIONAL.get(data_format, ())
    others = set(record) - {*_REQUIRED.get(data_format, ()), *optional}
    for field in optional:
        close = [] if field in record else difflib.get_close_matches(field, others, 1, _MISSPELT)
        if close:
            raise DataError(f"{shorten(close[0])}: unknown field; the format {data_format} calls it {field}")


def _check_context(record: Record, data_format: DatasetFormat) -> None:
    if data_format in _WITHOUT_CONTEXT or "chosen_input_ids" in record:
        return
    columns = columns_read(record, data_format)
    for field in _CONTEXT:
        if field not in columns and not is_blank(record.get(field)):
            place = "these pairs have" if data_format == "preference" else f"the format {data_format} has"
            raise DataError(
                f"{field}: {place} no place for it ({shorten(record[field])}), and without it another sample would be "
                f"learned; {_remedy(field)}"
            )


def _remedy(field: str) -> str:
    if field in ("system", "history"):
        return "map the question to instruction, write the conversation as messages, or take the column out of the file"
    if field == "tools":
        return "write the conversation as messages, or take the column out of the file"
    return "Loray trains on text alone; take the column out of the file"
