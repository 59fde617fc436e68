"""What a record of a data set stands for: text, a chat, token ids, or a pair of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpu_actor.contract.errors import DataError, NoAnswerError
from gpu_actor.contract.messages import shorten
from gpu_actor.data.readers.record import Record

IGNORE_INDEX = -100  # a label where no loss is taken, as transformers has it

Message = dict[str, Any]
"""`role` and `content`; where the file has them, `name`, `tool_calls`, `tool_call_id` and `reasoning_content`;
`weight` 0 where an answer is not learned."""


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
        tools: Definitions of the tools (JSON schema), as the chat template gets them; None where there are none.
    """

    messages: tuple[Message, ...]
    learned: tuple[int, ...]
    fallback: Plain | None = None
    tools: tuple[dict[str, Any], ...] | None = None


@dataclass(frozen=True)
class Tokens:
    """Token ids and labels as they are; `labels` is None where the file has none."""

    input_ids: list[int]
    labels: list[int] | None


Single = Plain | Chat | Tokens


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, of which the first is preferred."""

    chosen: Single
    rejected: Single


@dataclass(frozen=True)
class Unpaired:
    """One answer to a prompt, and whether it is wanted."""

    answer: Single
    desirable: bool


Sample = Single | Pair | Unpaired


def read_text(value: Any, field: str) -> str:
    """Text that is not blank."""
    text = read_any_text(value, field)
    if not text.strip():
        raise DataError(f"{field}: is empty ({shorten(value)}); give some text or remove the record")
    return text


def read_answer(value: Any, field: str) -> str:
    """Text that is learned.

    Raises:
        NoAnswerError: It is null or blank, as real data sets have it in a few records.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise NoAnswerError(f"{field}: is empty ({shorten(value)})")
    return read_text(value, field)


def read_any_text(value: Any, field: str) -> str:
    """Text, blank or not."""
    if not isinstance(value, str):
        raise DataError(f"{field}: must be a string, not {shorten(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        broken = value[error.start]
        raise DataError(f"{field}: holds half of a surrogate pair ({broken!a}), which is no text") from None
    return value


def read_optional_text(value: Any, field: str) -> str | None:
    """Text, or None where the field is null or blank."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return read_text(value, field)


def read_tokens(record: Record, vocab_size: int, side: str = "") -> Tokens:
    """Token ids and labels of a record.

    Args:
        record: The record.
        vocab_size: Number of tokens that the base model knows.
        side: What comes before the names of the fields (`chosen_`, `rejected_`).
    """
    ids_field, labels_field = f"{side}input_ids", f"{side}labels"
    input_ids = _read_ids(record[ids_field], ids_field, vocab_size, ignored=False)
    if record.get(labels_field) is None:
        return Tokens(input_ids, None)
    labels = _read_ids(record[labels_field], labels_field, vocab_size, ignored=True)
    if len(labels) != len(input_ids):
        raise DataError(
            f"{labels_field}: {len(labels)} labels for {len(input_ids)} {ids_field}; give one label per token "
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
