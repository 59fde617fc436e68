"""What a record of each data format means: which columns it has, and how they become a sample.

Columns that no format knows (an `id`, a `source`) are allowed, as data sets have them. A column that would
change the meaning of a sample, and is not supported, is refused. Free of torch and tokenizers.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

from gpu_actor.alpaca import read_alpaca
from gpu_actor.config import DatasetFormat
from gpu_actor.conversations import assistant_turns, read_messages, read_sharegpt, read_tools
from gpu_actor.errors import DataError
from gpu_actor.preferences import PAIR_COLUMNS, read_pair
from gpu_actor.record_types import Chat, Plain, Record, Sample, shorten
from gpu_actor.values import read_text, read_tokens

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
    "messages": ("tools",),
    "sharegpt": ("system", "tools"),
    "alpaca": ("input", "system", "history"),
    "prompt_completion": ("tools",),
}
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
    _check_fields(record, data_format)
    if data_format == "tokens":
        return read_tokens(record, vocab_size)
    if data_format == "preference":
        return read_pair(record, vocab_size)
    return _READERS[data_format](record)


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
        if record.get(field):
            raise DataError(f"{field}: not supported in the format {data_format}; {remedy}")
    known = {*_REQUIRED.get(data_format, ()), *_OPTIONAL.get(data_format, ())}
    for field in _OPTIONAL.get(data_format, ()):
        close = [] if field in record else difflib.get_close_matches(field, set(record) - known, 1, 0.8)
        if close:
            raise DataError(f"{shorten(close[0])}: unknown field; the format {data_format} calls it {field}")


def _read_messages(record: Record) -> Chat:
    messages = read_messages(record["messages"], "messages")
    return Chat(messages, assistant_turns(messages, "messages"), tools=read_tools(record.get("tools")))


def _read_sharegpt(record: Record) -> Chat:
    messages = read_sharegpt(record["conversations"], "conversations", record.get("system"))
    return Chat(messages, assistant_turns(messages, "conversations"), tools=read_tools(record.get("tools")))


def _read_prompt_completion(record: Record) -> Plain | Chat:
    prompt, completion = record["prompt"], record["completion"]
    tools = read_tools(record.get("tools"))
    if isinstance(prompt, list) and isinstance(completion, list):
        before = read_messages(prompt, "prompt")
        messages = before + read_messages(completion, "completion")
        return Chat(messages, assistant_turns(messages, "completion", len(before)), tools=tools)
    if isinstance(prompt, list) != isinstance(completion, list):
        raise DataError(
            f"completion: prompt and completion must both be strings or both be lists of messages, "
            f"not {shorten(prompt)} and {shorten(completion)}"
        )
    if tools:
        raise DataError("tools: only a conversation has tools; give prompt and completion as lists of messages")
    return Plain(read_text(prompt, "prompt"), read_text(completion, "completion"))


def _read_plain_text(record: Record) -> Plain:
    return Plain("", read_text(record["text"], "text"))


_READERS: Mapping[str, Callable[[Record], Plain | Chat]] = {
    "messages": _read_messages,
    "sharegpt": _read_sharegpt,
    "alpaca": read_alpaca,
    "prompt_completion": _read_prompt_completion,
    "text": _read_plain_text,
}
