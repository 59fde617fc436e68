"""What a record of a data set is: columns as they are in the file, then text, a chat, token ids, or a pair."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
"""The columns of one record by name."""

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


Sample = Single | Pair


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_short.maxlist = _short.maxdict = 4
_short.maxlevel = 3


def shorten(value: Any) -> str:
    """A value as it appears in an error message."""
    return _short.repr(value)
