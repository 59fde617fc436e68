"""What a record of each data format means: which columns it has, and how they become a sample.

Columns that no format knows (an `id`, a `source`) are allowed, as data sets have them. A column that would
change the meaning of a sample, and is not supported, is refused. Free of torch and tokenizers.
"""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Callable, Mapping
from typing import Any

from gpu_actor.contract.config import DatasetFormat
from gpu_actor.contract.errors import DataError
from gpu_actor.contract.messages import shorten
from gpu_actor.data.alpaca import read_alpaca
from gpu_actor.data.conversations import assistant_turns, read_messages, read_sharegpt, read_tools, with_system
from gpu_actor.data.preferences import PAIR_COLUMNS, pair_fields, read_pair
from gpu_actor.data.readers.record import Record
from gpu_actor.data.records import Chat, Plain, Sample, read_answer, read_any_text, read_tokens

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
# token ids are whole as they are; such fields beside them say where they come from.
_CONTEXT = ("system", "tools", "history", "image", "images", "video", "videos", "audio", "audios")
_CLOSE = 0.85  # of two names: a column called "story" is no misspelt "history", "inputs" and "label" are misspelt
_LISTS = ("messages", "conversations", "history", "input_ids", "labels", "attention_mask")
_WHOLE = ("text", "tokens")
_TEMPLATE_ARGUMENTS = {"chat_template_kwargs": "put what they change into dataset.chat_template and remove the field"}
_UNSUPPORTED: dict[DatasetFormat, dict[str, str]] = {
    "tokens": {
        "attention_mask": "give input_ids without padding and remove the field",
        "position_ids": "positions count from 0 in each sample; remove the field",
        "loss_mask": "write labels instead, with -100 where no loss is taken",
    },
    **dict.fromkeys(("messages", "sharegpt", "prompt_completion", "preference"), _TEMPLATE_ARGUMENTS),
}


def detect_format(record: Record, pairs: bool = False) -> DatasetFormat:
    """The format that a record's fields belong to.

    Args:
        record: The first record of a data set.
        pairs: Preference pairs are wanted; otherwise they are found only where the record is nothing else.

    Raises:
        DataError: They belong to none.
    """
    is_pair = any(all(name in record for name in names) for names in PAIR_COLUMNS)
    if is_pair and pairs:
        return "preference"
    # Beside two answers, a conversation is their prompt, which alone has no last answer to learn.
    if is_pair and ("conversations" in record or isinstance(record.get("chosen"), dict)):
        return "preference"
    for name, fields in _REQUIRED.items():
        if all(field in record for field in fields):
            return name
    if is_pair:
        return "preference"
    known = "; ".join(f"{name}: {', '.join(fields)}" for name, fields in _REQUIRED.items())
    known += f"; preference: {' or '.join(', '.join(names) for names in PAIR_COLUMNS)}"
    raise DataError(f"the fields {shorten(list(record))} belong to no known format ({known})")


def read_sample(record: Record, data_format: DatasetFormat, vocab_size: int) -> Sample:
    """Read one record in a format that is not `auto`.

    Raises:
        DataError: A field is missing, empty, of the wrong type or not supported; its name comes first.
    """
    record = {**record, **_lists_in_text(record)}
    _check_fields(record, data_format)
    _check_context(record, data_format)
    if data_format == "tokens":
        return read_tokens(record, vocab_size)
    if data_format == "preference":
        return read_pair(record, vocab_size)
    return _READERS[data_format](record)


def read_fields(record: Record, data_format: DatasetFormat) -> frozenset[str]:
    """The fields that a record's format, and of pairs its layout, reads."""
    if data_format == "preference":
        return pair_fields(record)
    return frozenset((*_REQUIRED[data_format], *_OPTIONAL.get(data_format, ())))


def _check_context(record: Record, data_format: DatasetFormat) -> None:
    if data_format in _WHOLE or "chosen_input_ids" in record:
        return
    read = read_fields(record, data_format)
    for field in _CONTEXT:
        if field not in read and not _is_blank(record.get(field)):
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


def _lists_in_text(record: Record) -> Record:
    """Those fields that are lists by nature and stand there as JSON text, as CSV has them."""
    found: Record = {}
    for field in _LISTS:
        value = record.get(field)
        if isinstance(value, str) and value.lstrip().startswith("["):
            with contextlib.suppress(ValueError, RecursionError):  # its reader says what is wrong
                found[field] = json.loads(value)
    return found


def _all_ones(mask: Any) -> bool:
    """Whether a mask hides nothing: every tokenizer writes one."""
    return isinstance(mask, list) and all(value == 1 for value in mask)


def _is_blank(value: Any) -> bool:
    return value.strip() in ("", "[]", "null") if isinstance(value, str) else not value


def _check_fields(record: Record, data_format: DatasetFormat) -> None:
    for field in _REQUIRED.get(data_format, ()):
        if field not in record:
            close = difflib.get_close_matches(field, record, n=1)
            hint = f"; did you mean it by {shorten(close[0])}?" if close else ""
            raise DataError(
                f"{field}: missing; a record of the format {data_format} needs "
                f"{' and '.join(_REQUIRED[data_format])}, this one has {shorten(list(record))}{hint}"
            )
    for field, remedy in _UNSUPPORTED.get(data_format, {}).items():
        if field == "attention_mask" and _all_ones(record.get(field)):
            continue
        if record.get(field):
            raise DataError(f"{field}: not supported in the format {data_format}; {remedy}")
    known = {*_REQUIRED.get(data_format, ()), *_OPTIONAL.get(data_format, ())}
    for field in _OPTIONAL.get(data_format, ()):
        close = [] if field in record else difflib.get_close_matches(field, set(record) - known, 1, _CLOSE)
        if close:
            raise DataError(f"{shorten(close[0])}: unknown field; the format {data_format} calls it {field}")


def _read_messages(record: Record) -> Chat:
    messages = with_system(read_messages(record["messages"], "messages"), "messages", record.get("system"))
    return Chat(messages, assistant_turns(messages, "messages"), tools=read_tools(record.get("tools")))


def _read_sharegpt(record: Record) -> Chat:
    messages = read_sharegpt(record["conversations"], "conversations", record.get("system"))
    return Chat(messages, assistant_turns(messages, "conversations"), tools=read_tools(record.get("tools")))


def _read_prompt_completion(record: Record) -> Plain | Chat:
    prompt, completion = record["prompt"], record["completion"]
    tools = read_tools(record.get("tools"))
    if isinstance(prompt, list) and isinstance(completion, list):
        before = with_system(read_messages(prompt, "prompt"), "prompt", record.get("system"))
        messages = before + read_messages(completion, "completion")
        return Chat(messages, assistant_turns(messages, "completion", len(before)), tools=tools)
    if isinstance(prompt, list) != isinstance(completion, list):
        raise DataError(
            f"completion: prompt and completion must both be strings or both be lists of messages, "
            f"not {shorten(prompt)} and {shorten(completion)}"
        )
    for field in ("system", "tools"):
        if not _is_blank(record.get(field)):
            raise DataError(f"{field}: only a conversation has it; give prompt and completion as lists of messages")
    return Plain(read_any_text(prompt, "prompt"), read_answer(completion, "completion"))


def _read_plain_text(record: Record) -> Plain:
    return Plain("", read_answer(record["text"], "text"))


_READERS: Mapping[str, Callable[[Record], Plain | Chat]] = {
    "messages": _read_messages,
    "sharegpt": _read_sharegpt,
    "alpaca": read_alpaca,
    "prompt_completion": _read_prompt_completion,
    "text": _read_plain_text,
}
