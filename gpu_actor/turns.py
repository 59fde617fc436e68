"""Which characters of a rendered conversation an assistant's turn covers.

It is found by rendering, so no `{% generation %}` marks are needed:

- A turn starts where the template's generation prompt ends, so that all the model has to write itself is learned
  (Qwen3's empty `<think>` block, say). If a template has no generation prompt, or writes another one before a
  finished turn, it starts where the content starts.
- It ends after the text that closes a turn: `<|im_end|>`, `<|eot_id|>`, `</s>`. Blank text after that (the
  newline of ChatML) belongs to the template and is not learned, as in the training templates of TRL. If a
  template closes inner turns in another way than the last one, inner turns learn what both have in common.
- Tool calls are part of their turn, as the template writes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_actor.errors import DataError, UnfitDataError
from gpu_actor.record_types import Message

_OWN_DATA = "check the chat template, or give the samples in the format prompt_completion or tokens"

Render = Callable[[Sequence[Message], bool], str]
"""Messages, and whether a generation prompt is added, to text."""


@dataclass(frozen=True)
class Span:
    """Characters of the rendered text that are learned: an answer, and what closes it."""

    start: int
    content_end: int
    end: int


class Conversation:
    """One conversation and its text.

    Attributes:
        text: The whole conversation as the template writes it.
    """

    def __init__(self, messages: Sequence[Message], render: Render, has_generation_prompt: bool) -> None:
        """Render the conversation.

        Args:
            messages: Its messages.
            render: The chat template.
            has_generation_prompt: Whether the template can write one.

        Raises:
            DataError: The template refuses the conversation.
        """
        self._messages = list(messages)
        self._render = render
        self._has_generation_prompt = has_generation_prompt
        self.text = render(self._messages, False)

    def find_turn(self, index: int) -> Span:
        """What message `index` covers in the text.

        Raises:
            DataError: The template does not write the message in one piece.
        """
        head, tail = self._around(self._messages, index, self.text)
        content_end = len(self.text) - len(tail)
        # The head may differ from the text near its end: Qwen3 moves an answer's own <think> block.
        start = common_length(head, self.text)
        if content_end < start:
            raise DataError(f"the chat template does not write message {index} in one piece; {_OWN_DATA}")
        prompt = self._generation_prompt(index)
        if prompt is not None and len(prompt) <= start and self.text.startswith(prompt):
            start = len(prompt)
        closing = tail
        if index + 1 < len(self._messages):
            before = self._messages[: index + 1]
            alone = self._around(before, index, self._render(before, False))[1]
            closing = tail[: common_length(alone, tail)]
            if len(closing) < len(alone):  # the next marker may begin as the closing one does: "<|"
                closing = re.sub(r"(?<=\s)\S+$", "", closing)
        return Span(start, content_end, content_end + len(closing.rstrip() or closing))

    def _around(self, messages: list[Message], index: int, text: str) -> tuple[str, str]:
        """The text of a conversation before and after what message `index` says, found with a stand-in for it.

        Of a message that only calls tools, the part after begins inside of the last call's arguments.
        """
        message = messages[index]
        if message["content"] or not message.get("tool_calls"):
            head, tail = self._split(messages, index, text, lambda name: {**message, "content": name})
            if not text.endswith(tail):
                raise DataError(f"the chat template does not write message {index} in one piece; {_OWN_DATA}")
            return head, tail
        first, *_ = calls = message["tool_calls"]

        def renamed(name: str) -> Message:
            return {**message, "tool_calls": [_with(first, name=name), *calls[1:]]}

        def emptied(name: str) -> Message:
            return {**message, "tool_calls": [*calls[:-1], _with(calls[-1], arguments={name: ""})]}

        head, _ = self._split(messages, index, text, renamed)
        _, tail = self._split(messages, index, text, emptied)
        return head, tail[len(tail) - common_length(tail[::-1], text[::-1]) :]

    def _split(
        self, messages: list[Message], index: int, text: str, change: Callable[[str], Message]
    ) -> tuple[str, str]:
        """The text before and after a stand-in that a changed message holds."""
        stand_in = "LorayStandIn"
        while stand_in in text:
            stand_in += "0"
        parts = self._render([*messages[:index], change(stand_in), *messages[index + 1 :]], False).split(stand_in)
        if len(parts) != 2:
            what = "content" if messages[index]["content"] else "tool calls"
            raise DataError(
                f"the chat template writes the {what} of message {index} (role {messages[index]['role']}) "
                f"{len(parts) - 1} times, where once is needed; {_OWN_DATA}"
            )
        return parts[0], parts[1]

    def _generation_prompt(self, index: int) -> str | None:
        """The conversation up to the point where the model writes message `index`, if the template can write it."""
        if index == 0 or not self._has_generation_prompt:
            return None
        try:
            return self._render(self._messages[:index], True)
        except UnfitDataError:
            raise
        except DataError:  # the template refuses the beginning of a conversation that it accepts as a whole
            return None


def _with(call: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**call, "function": {**call["function"], **changes}}


def common_length(left: Sequence[Any], right: Sequence[Any]) -> int:
    """How many items two sequences have in common at their beginning."""
    size = min(len(left), len(right))
    if left[:size] == right[:size]:  # the usual case, without a loop
        return size
    return next((i for i in range(size) if left[i] != right[i]), size)
