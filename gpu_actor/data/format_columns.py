"""The columns of each data format: which format a record is of, and which columns it may not have.

Columns that no format has (an `id`, a `source`) are allowed, as data sets have them, and reported. A column that would
change the meaning of a sample, and is not read, is refused. Free of torch and tokenizers.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from gpu_actor.contract.config import DatasetFormat
from gpu_actor.contract.errors import DataError
from gpu_actor.contract.messages import shorten
from gpu_actor.data.meaning import Kind, is_blank, is_said, kind_of, texts
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
# A text and token ids are whole as they are: what stands beside them says where they come from.
_SOURCES: tuple[Kind, ...] = (
    *("template arguments", "tools", "system", "history", "context", "question", "prompt", "thought"),
)
# Kinds of columns that change a sample of the other formats only.
_IRRELEVANT: Mapping[DatasetFormat, tuple[Kind, ...]] = {
    "tokens": ("0-1 label", *_SOURCES),
    # beside a text it is the class that a classification gives it
    "text": ("0-1 label", "attention mask", "packing", *_SOURCES),
    "preference": ("0-1 label",),  # the pair says already which answer is better
    "alpaca": ("attention mask", "packing", "prompt"),  # what the instruction was made into
    **dict.fromkeys(("messages", "sharegpt", "prompt_completion"), ("attention mask", "packing")),
}
# What other columns may say already: a prompt was made of the question, an answer has its thoughts in it.
_OFTEN_SAID: tuple[Kind, ...] = ("context", "question", "prompt", "thought")
# Which field of a format may be what a column is for.
_FIELDS: Mapping[Kind, tuple[str, ...]] = {
    "tools": ("tools",),
    "system": ("system",),
    "history": ("history",),
    "context": ("input",),
    "question": ("input", "prompt"),
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
    raise DataError(
        f"the fields {shorten(list(record))} belong to no known format ({formats}); say in dataset.columns which "
        "column is which field, such as {instruction: question, output: response}"
    )


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
    _check_meaning(record, data_format)
    _check_spelling(record, data_format)


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


def _check_spelling(record: Record, data_format: DatasetFormat) -> None:
    optional = _OPTIONAL.get(data_format, ())
    others = set(record) - {*_REQUIRED.get(data_format, ()), *optional}
    for field in optional:
        close = [] if field in record else difflib.get_close_matches(field, others, 1, _MISSPELT)
        if close:
            raise DataError(f"{shorten(close[0])}: unknown field; the format {data_format} calls it {field}")


def _check_meaning(record: Record, data_format: DatasetFormat) -> None:
    """Refuse columns that are not read and without which another sample would be learned."""
    columns = columns_read(record, data_format)
    irrelevant = _IRRELEVANT.get("tokens" if "chosen_input_ids" in record else data_format, ())
    for column, value in record.items():
        kind = None if column in columns else kind_of(column, value)
        if kind is None or kind in irrelevant:
            continue
        if kind in ("context", "question") and _lacks_prompt(record, columns):
            continue  # its reader names the column that may be the prompt
        if kind in _OFTEN_SAID and is_said(value, "\n".join(texts([record.get(name) for name in columns]))):
            continue
        raise DataError(f"{column}: {_refusal(column, value, kind, record, data_format)}")


def _lacks_prompt(record: Record, columns: frozenset[str]) -> bool:
    """Whether a record is a pair of two texts, and the prompt is not there."""
    return columns == {"prompt", "chosen", "rejected"} and record.get("prompt") is None


def _refusal(column: str, value: Any, kind: Kind, record: Record, data_format: DatasetFormat) -> str:
    """Why a column is refused, and what to do about it."""
    take_out = "take the column out of the file"
    if kind in ("label", "0-1 label"):
        return (
            f"says whether an answer is wanted ({shorten(value)}); without it every answer is learned as a "
            f"good one; {_label_remedy(column, value, data_format)}"
        )
    if kind == "verdict":
        return (
            f"marks a record that is not to be learned ({shorten(value)}); drop the records with {column} false, or "
            f"{take_out}"
        )
    if kind == "weight":
        return (
            f"every record weighs the same, and this one asks for {shorten(value)}; repeat or drop records, write "
            f"`weight: 0` into messages that are not to be learned, or {take_out}"
        )
    if kind in _UNSUPPORTED:
        return f"not supported in the format {data_format}; {_UNSUPPORTED[kind]}"
    place = "these pairs have" if data_format == "preference" else f"the format {data_format} has"
    remedy = _rename(column, value, kind, record, data_format) or _REMEDIES[kind]
    return (
        f"{place} no place for it ({shorten(value)}), and without it another sample would be learned; {remedy}, or "
        f"{take_out}"
    )


def _label_remedy(column: str, value: Any, data_format: DatasetFormat) -> str:
    """What to do about a label; texts have no prompt, and pairs say already which answer is better."""
    unwanted = "0" if str(value).strip() in ("0", "1") else "false"
    drop = f"drop the records with {column} {unwanted} and take the column out of the file"
    if data_format in ("text", "preference"):
        return drop
    renamed = "" if column == "label" else f" with dataset.columns: {{label: {column}}}"
    return f"set training.objective: kto{renamed}, which learns from both kinds, or {drop}"


def _rename(column: str, value: Any, kind: Kind, record: Record, data_format: DatasetFormat) -> str | None:
    """How the format reads a column under the name of one of its fields, if it has one to spare."""
    columns = columns_read(record, data_format)
    for field in _FIELDS.get(kind, ()):
        fits = isinstance(value, str) or field in ("tools", "history")
        if fits and field in columns and is_blank(record.get(field)):
            return f"set dataset.columns: {{{field}: {column}}}"
    return None


_UNSUPPORTED: Mapping[Kind, str] = {
    "loss mask": "write token ids with labels, -100 where no loss is taken, or take the column out of the file",
    "attention mask": "give input_ids without padding and remove the field",
    "packing": "positions count from 0 in each sample, and Loray packs by itself; give one sequence in each record "
    "and remove the field",
    "template arguments": "put what they change into dataset.chat_template and remove the field",
    "reference": "the reference is computed while training; remove the field",
}
_AS_MESSAGES = "write the conversation as messages"
_REMEDIES: Mapping[Kind, str] = {
    "media": "Loray trains on text alone; leave such records out",
    "tools": _AS_MESSAGES,
    "system": f"map the question to instruction, {_AS_MESSAGES}",
    "history": f"map the question to instruction, {_AS_MESSAGES}",
    "context": "write it into the question",
    "question": "write it into the question",
    "prompt": "write it into the conversation",
    "thought": "write the conversation as messages, with the thoughts as reasoning_content of the answer",
}
