"""What a record of each data format means: plain text, a chat, or token ids. Free of torch and tokenizers.

Columns that no format knows (an `id`, a `source`) are allowed, as data sets have them. A column that would
change the meaning of a sample, and is not supported, is refused.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from gpu_actor.config import DatasetFormat
from gpu_actor.data_files import Record, shorten
from gpu_actor.errors import DataError

IGNORE_INDEX = -100
ROLES = ("system", "developer", "user", "assistant", "tool")

# In the order in which `auto` tries them: the first format whose fields are all there is taken.
_REQUIRED: dict[DatasetFormat, tuple[str, ...]] = {
    "tokens": ("input_ids",),
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
_OPTIONAL: dict[DatasetFormat, tuple[str, ...]] = {"alpaca": ("input",), "tokens": ("labels",)}
_UNSUPPORTED: dict[DatasetFormat, dict[str, str]] = {
    "alpaca": dict.fromkeys(("system", "history"), "write such samples in the format messages"),
    "messages": {"tools": "tool definitions are not supported; remove the field"},
    "tokens": {
        "attention_mask": "give input_ids without padding and remove the field",
        "position_ids": "positions count from 0 in each sample; remove the field",
        "loss_mask": "write labels instead, with -100 where no loss is taken",
    },
}

_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Plain:
    """A prompt and its answer, one directly after the other; the answer is learned."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Chat:
    """A conversation for the tokenizer's chat template.

    Attributes:
        messages: Each with `role` and `content`.
        learned: Which messages are learned, as indices into `messages`.
        fallback: What to train on where the tokenizer has no chat template, if the format says so.
    """

    messages: tuple[dict[str, str], ...]
    learned: tuple[int, ...]
    fallback: Plain | None = None


@dataclass(frozen=True)
class Tokens:
    """Token ids and labels as they are; `labels` is None where the file has none."""

    input_ids: list[int]
    labels: list[int] | None


Sample = Plain | Chat | Tokens


def detect_format(record: Record) -> DatasetFormat:
    """The format that a record's fields belong to.

    Raises:
        DataError: They belong to none.
    """
    for name, fields in _REQUIRED.items():
        if all(field in record for field in fields):
            return name
    known = "; ".join(f"{name}: {', '.join(fields)}" for name, fields in _REQUIRED.items())
    raise DataError(f"the fields {shorten(list(record))} belong to no known format ({known})")


def read_sample(record: Record, data_format: DatasetFormat, vocab_size: int) -> Sample:
    """Read one record in a format that is not `auto`.

    Raises:
        DataError: A field is missing, empty, of the wrong type or not supported; its name comes first.
    """
    _check_fields(record, data_format)
    if data_format == "tokens":
        return _read_tokens(record, vocab_size)
    if data_format == "messages":
        messages = _read_messages(record["messages"], "messages")
        return Chat(messages, _assistant_turns(messages, "messages"))
    if data_format == "alpaca":
        return _read_alpaca(record)
    if data_format == "prompt_completion":
        return _read_prompt_completion(record)
    return Plain("", _read_text(record["text"], "text"))


def _check_fields(record: Record, data_format: DatasetFormat) -> None:
    for field in _REQUIRED[data_format]:
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
    for field in _OPTIONAL.get(data_format, ()):
        close = [] if field in record else difflib.get_close_matches(field, set(record) - {"input_ids"}, 1, 0.8)
        if close:
            raise DataError(f"{shorten(close[0])}: unknown field; the format {data_format} calls it {field}")


def _read_text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{field}: must be a string, not {shorten(value)}")
    if not value.strip():
        raise DataError(f"{field}: is empty ({shorten(value)}); give some text or remove the record")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        broken = value[error.start]
        raise DataError(f"{field}: holds half of a surrogate pair ({broken!a}), which is no text") from None
    return value


def _read_messages(value: Any, field: str) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{field}: must be a list of at least one message, not {shorten(value)}")
    return tuple(_read_message(message, f"{field}[{index}]") for index, message in enumerate(value))


def _read_message(message: Any, field: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise DataError(f"{field}: must be an object with role and content, not {shorten(message)}")
    for name in ("role", "content"):
        if name not in message:
            raise DataError(f"{field}.{name}: missing; the message has {shorten(list(message))}")
    for name, value in message.items():
        if name not in ("role", "content") and value is not None:
            raise DataError(f"{field}: the field {shorten(name)} is not supported; a message has role and content")
    if not isinstance(message["role"], str) or message["role"] not in ROLES:
        raise DataError(f"{field}.role: {shorten(message['role'])} is no role; use one of {', '.join(ROLES)}")
    return {"role": message["role"], "content": _read_text(message["content"], f"{field}.content")}


def _assistant_turns(messages: tuple[dict[str, str], ...], field: str, start: int = 0) -> tuple[int, ...]:
    turns = tuple(i for i in range(start, len(messages)) if messages[i]["role"] == "assistant")
    if not turns:
        raise DataError(f"{field}: holds no message of the role assistant, so there is nothing to learn")
    return turns


def _read_alpaca(record: Record) -> Chat:
    instruction = _read_text(record["instruction"], "instruction")
    output = _read_text(record["output"], "output")
    context = record.get("input")
    # The original Alpaca data has an empty input wherever there is none.
    if context is None or (isinstance(context, str) and not context.strip()):
        question, prompt = instruction, _ALPACA_WITHOUT_INPUT.format(instruction=instruction)
    else:
        context = _read_text(context, "input")
        question = f"{instruction}\n{context}"
        prompt = _ALPACA_WITH_INPUT.format(instruction=instruction, input=context)
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": output})
    return Chat(messages, (1,), Plain(prompt, output))


def _read_prompt_completion(record: Record) -> Sample:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        before = _read_messages(prompt, "prompt")
        messages = before + _read_messages(completion, "completion")
        return Chat(messages, _assistant_turns(messages, "completion", len(before)))
    if isinstance(prompt, list) != isinstance(completion, list):
        raise DataError(
            f"completion: prompt and completion must both be strings or both be lists of messages, "
            f"not {shorten(prompt)} and {shorten(completion)}"
        )
    return Plain(_read_text(prompt, "prompt"), _read_text(completion, "completion"))


def _read_tokens(record: Record, vocab_size: int) -> Tokens:
    input_ids = _read_ids(record["input_ids"], "input_ids", vocab_size, ignored=False)
    if record.get("labels") is None:
        return Tokens(input_ids, None)
    labels = _read_ids(record["labels"], "labels", vocab_size, ignored=True)
    if len(labels) != len(input_ids):
        raise DataError(
            f"labels: {len(labels)} labels for {len(input_ids)} input_ids; give one label per token "
            f"(unshifted, {IGNORE_INDEX} where no loss is taken)"
        )
    return Tokens(input_ids, labels)


def _read_ids(value: Any, field: str, vocab_size: int, ignored: bool) -> list[int]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{field}: must be a list of at least one token id, not {shorten(value)}")
    for index, token in enumerate(value):
        # type() and not isinstance(): True is an int to Python, and no token.
        if type(token) is not int or not (0 <= token < vocab_size or (ignored and token == IGNORE_INDEX)):
            allowed = f"whole numbers from 0 to {vocab_size - 1}" + (f", or {IGNORE_INDEX}" if ignored else "")
            raise DataError(f"{field}[{index}]: {shorten(token)} is no token of the base model; allowed are {allowed}")
    return value
