"""Which characters of a rendered conversation an assistant's turn covers.

It is found by rendering, so no `{% generation %}` marks are needed:

- A turn starts where the template's generation prompt ends, so that all the model has to write itself is learned
  (Qwen3's empty `<think>` block, say). If a template has no generation prompt, or writes another one before a
  finished turn, it starts where the content starts.
- It ends after the text that closes a turn: `<|im_end|>`, `<|eot_id|>`, `</s>`. Blank text after that (the
  newline of ChatML) belongs to the template and is not learned. If a template
  closes inner turns in another way than the last one, inner turns learn what both have in common.
- Tool calls are part of their turn, as the template writes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_actor.contract.errors import DataError, UnfitDataError
from gpu_actor.data.records import Message

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
            parts = self._stand_in(messages, index, text, lambda name: {"content": name})
            head, tail = self._two(parts, messages, index)
            if not text.endswith(tail):
                raise DataError(f"the chat template does not write message {index} in one piece; {_OWN_DATA}")
            return head, tail
        calls = message["tool_calls"]
        head = self._before_calls(messages, index, text)
        emptied = self._stand_in(
            messages, index, text, lambda name: {"tool_calls": [*calls[:-1], _with(calls[-1], arguments={name: ""})]}
        )
        _, tail = self._two(emptied, messages, index)
        return head, tail[len(tail) - common_length(tail[::-1], text[::-1]) :]

    def _before_calls(self, messages: list[Message], index: int, text: str) -> str:
        """The text before a message that only calls tools: before its content if it had any, or before a name."""
        first, *others = messages[index]["tool_calls"]
        with_content = self._stand_in(messages, index, text, lambda name: {"content": name})
        # A template may repeat the name with the tool's answer: the first one counts.
        renamed = self._stand_in(messages, index, text, lambda name: {"tool_calls": [_with(first, name=name), *others]})
        heads = [renamed[0], *with_content[: len(with_content) == 2]]
        return min(heads, key=len)

    def leaves_open(self, index: int, span: Span) -> bool:
        """Whether the template writes nothing behind the last message, so that nothing would teach the end of it."""
        message = self._messages[index]
        if not message.get("tool_calls"):
            return not self.text[span.content_end :].strip()
        try:  # what closes tool calls may be no more than their own end
            plain = self._stand_in(self._messages, index, self.text, lambda name: {"content": name, "tool_calls": None})
        except UnfitDataError:
            raise
        except DataError:
            return False
        return len(plain) == 2 and not plain[1].strip()

    def _two(self, parts: list[str], messages: list[Message], index: int) -> tuple[str, str]:
        """The text before and after a stand-in, which the template has to write once."""
        if len(parts) != 2:
            what = "content" if messages[index]["content"] else "tool calls"
            raise DataError(
                f"the chat template writes the {what} of message {index} (role {messages[index]['role']}) "
                f"{len(parts) - 1} times, where once is needed; {_OWN_DATA}"
            )
        return parts[0], parts[1]

    def _stand_in(
        self, messages: list[Message], index: int, text: str, change: Callable[[str], dict[str, Any]]
    ) -> list[str]:
        """The parts of the text around a stand-in that changed fields of a message hold; None takes a field away."""
        stand_in = "LorayStandIn"
        while stand_in in text:
            stand_in += "0"
        changed = {**messages[index], **change(stand_in)}
        changed = {field: value for field, value in changed.items() if value is not None}
        return self._render([*messages[:index], changed, *messages[index + 1 :]], False).split(stand_in)

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
