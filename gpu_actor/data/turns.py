"""Which characters of a rendered conversation an assistant's turn covers.

It is found by rendering, so no `{% generation %}` marks are needed:

- A turn starts where the template's generation prompt ends, so that all the model has to write itself is learned
  (Qwen3's empty `<think>` block, say). Where a finished turn goes on otherwise than the generation prompt (which
  closes an empty thought, say, while the turn has one), it starts where the two part. Without a generation prompt
  it starts where the content starts.
- It ends after the text that closes a turn: `<|im_end|>`, `<|eot_id|>`, `</s>`. Blank text after that (the
  newline of ChatML) belongs to the template and is not learned. If a template closes inner turns in another way
  than the last one, inner turns learn what both have in common. Where that is nothing, the special token that
  follows is what the model stops at (GLM's `<|observation|>`), and is learned.
- Tool calls are part of their turn, as the template writes them. What a tool answered is not, even where the
  template writes it inside of the turn, between the call and the content (Gemma 4).
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
        answers: How many messages of the assistant it has.
    """

    def __init__(
        self,
        messages: Sequence[Message],
        render: Render,
        has_generation_prompt: bool,
        special: re.Pattern[str],
        text: str | None = None,
    ) -> None:
        """Render the conversation.

        Args:
            messages: Its messages.
            render: The chat template.
            has_generation_prompt: Whether the template can write one.
            special: Matches the tokenizer's special tokens, of which one may end a turn.
            text: The rendered conversation, where that is there already.

        Raises:
            DataError: The template refuses the conversation.
        """
        self._messages = list(messages)
        self._render = render
        self._has_generation_prompt = has_generation_prompt
        self._special = special
        self._headers: dict[str, str] = {}
        self.answers = sum(message["role"] == "assistant" for message in messages)
        self.text = render(self._messages, False) if text is None else text

    def find_turn(self, index: int) -> list[Span]:
        """What message `index` covers in the text: one span, or two around what a tool answered.

        Raises:
            DataError: The template does not write the message in one piece.
        """
        head, tail = self._around(self._messages, index, self.text)
        content_end = len(self.text) - len(tail)
        # The head may differ from the text near its end: Qwen3 moves an answer's own <think> block.
        content_start = common_length(head, self.text)
        if content_end < content_start:
            raise DataError(f"the chat template does not write message {index} in one piece; {_OWN_DATA}")
        start = self._start(index, content_start)
        span = Span(start, content_end, content_end + self._closing_length(index, tail))
        return self._without_tool_answers(index, span, content_start)

    def _start(self, index: int, content_start: int) -> int:
        """Where the model begins to write message `index`, at or before its content."""
        prompt = self._generation_prompt(index)
        if prompt is None:
            return content_start
        shared = min(common_length(prompt, self.text), content_start)
        if shared < len(prompt):
            header = self._header(index, prompt)
            before = len(prompt) - len(header)
            if shared < before:  # earlier messages are written in another way once this one is there
                before = len(self.text) - len(self._around(self._messages, index - 1, self.text)[1])
            return self._end_of_header(header, before, content_start)
        if self._messages[index - 1]["role"] == "tool" and not self._header(index, prompt).strip():
            # Behind what a tool answered the model goes on with its turn, and yet the template may open another one.
            header = self._header_of_first_turn()
            if self.text.startswith(header, shared):
                return min(shared + len(header), content_start)
        return shared

    def _closing_length(self, index: int, tail: str) -> int:
        """How many characters behind the content of message `index` close the turn."""
        if index + 1 == len(self._messages):
            return len(tail.rstrip() or tail)
        before = self._messages[: index + 1]
        text = self._render(before, False)
        alone = self._around(before, index, text)[1]
        closing = tail[: common_length(alone, tail)]
        if len(closing) < len(alone):  # the next marker may begin as the closing one does: "<|"
            closing = re.sub(r"(?<=\s)\S+$|<[^<>]*$", "", closing)
            open_end = not self._special.search(closing)
            closing = "" if open_end and self._special.match(tail) else closing
        else:
            open_end = self._is_open(before, text, len(text) - len(alone))
        length = len(closing.rstrip())
        return (open_end and self._marker_end(tail, length)) or length or len(closing)

    def _marker_end(self, tail: str, begin: int) -> int:
        """Where the special token that follows an inner turn ends in the text behind its content; 0 without one."""
        marker = self._special.match(tail, len(tail) - len(tail[begin:].lstrip()))
        if marker is None or self._header_of_first_turn().startswith(marker[0]):  # it opens the model's next turn
            return 0
        return marker.end()

    def _without_tool_answers(self, index: int, span: Span, content_start: int) -> list[Span]:
        """A turn's span without what tools answered, where that stands between its calls and its content."""
        message, after = self._messages[index], index + 1
        while after < len(self._messages) and self._messages[after]["role"] == "tool":
            after += 1
        if after == index + 1 or not message.get("tool_calls") or not message["content"]:
            return [span]
        answers = self._stand_in(self._messages, index + 1, self.text, lambda name: {"content": name})
        if len(answers) < 2 or common_length(answers[0], self.text) >= span.content_end:
            return [span]
        bare = self._render([*self._messages[: index + 1], *self._messages[after:]], False)
        begin = min(common_length(bare, self.text), common_length(answers[0], self.text))
        marker = self._special.match(self.text, begin)  # the model hands over to the tool by it
        return [
            Span(span.start, begin, marker.end() if marker else begin),
            Span(content_start, span.content_end, span.end),
        ]

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
        try:
            with_content = self._stand_in(messages, index, text, lambda name: {"content": name})
        except UnfitDataError:
            raise
        except DataError:  # the template takes no content beside calls
            with_content = []
        # A template may repeat the name with the tool's answer: the first one counts.
        renamed = self._stand_in(messages, index, text, lambda name: {"tool_calls": [_with(first, name=name), *others]})
        heads = [renamed[0], *with_content[: len(with_content) == 2]]
        return min(heads, key=len)

    def leaves_open(self, content_end: int | None = None) -> bool:
        """Whether the template writes nothing behind the last message, so that nothing would teach the end of it.

        Args:
            content_end: Where that message's content ends; None looks for its last word.
        """
        last_word = (self._messages[-1]["content"].split() or [""])[-1]
        end = self.text.rfind(last_word) + len(last_word) if content_end is None else content_end
        return self._is_open(self._messages, self.text, end)

    def _is_open(self, messages: list[Message], text: str, content_end: int) -> bool:
        """Whether the template writes nothing behind the last of these messages, of which `text` is the rendering."""
        last = messages[-1]
        if not last.get("tool_calls"):
            return not text[content_end:].strip()
        # What closes tool calls may be no more than their own end: a message without them tells.
        plain = [*messages[:-1], {**last, "tool_calls": None}]
        try:
            parts = self._stand_in(plain, len(plain) - 1, text, lambda name: {"content": name})
        except UnfitDataError:
            raise
        except DataError:
            return False
        return len(parts) == 2 and not parts[1].strip()

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

    def _header(self, index: int, prompt: str) -> str:
        """What the generation prompt `prompt` adds to the conversation before message `index`; the same for a role."""
        role = self._messages[index - 1]["role"]
        if role not in self._headers:
            plain = self._render(self._messages[:index], False)
            self._headers[role] = prompt[common_length(plain, prompt) :]
        return self._headers[role]

    def _header_of_first_turn(self) -> str:
        """What the generation prompt adds before the first assistant's message."""
        first = next(i for i, message in enumerate(self._messages) if message["role"] == "assistant")
        prompt = self._generation_prompt(first)
        return "" if prompt is None else self._header(first, prompt)

    def _end_of_header(self, header: str, begin: int, content_start: int) -> int:
        """Where the header, or the beginning that a finished turn shares with it, ends in the text before a content."""
        between = self.text[begin:content_start]
        shared = [common_length(header, between[place:]) for place in range(len(between))]
        longest = max(shared, default=0)
        whole = re.search(r".*[\s>\]]", header[:longest], re.DOTALL)  # not in the middle of a word
        return begin + shared.index(longest) + whole.end() if whole else content_start


def marked_spans(conversation: Conversation, learned: Sequence[int], marks: Sequence[tuple[int, int]]) -> list[Span]:
    """The spans of the learned messages among those that a template marks by `{% generation %}`.

    Where some answers are not learned, a mark is that of a message in whose turn it begins, or whose turn begins in it.
    """
    spans = [Span(start, end, end) for start, end in marks if start < end]
    if len(learned) == conversation.answers:
        return spans
    turns = [turn for index in learned for turn in conversation.find_turn(index)]
    return [span for span in spans if any(turn.start < span.end and span.start < turn.end for turn in turns)]


def _with(call: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**call, "function": {**call["function"], **changes}}


def common_length(left: Sequence[Any], right: Sequence[Any]) -> int:
    """How many items two sequences have in common at their beginning."""
    size = min(len(left), len(right))
    if left[:size] == right[:size]:  # the usual case, without a loop
        return size
    return next((i for i in range(size) if left[i] != right[i]), size)
