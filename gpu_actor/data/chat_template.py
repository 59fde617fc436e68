"""Rendering a conversation with a chat template, which is a program of strangers: sandboxed, and stopped in time."""

from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from gpu_actor.contract.config import is_template_path
from gpu_actor.contract.errors import DataError, UnfitDataError
from gpu_actor.data.records import Message

Tools = Sequence[dict[str, Any]] | None
MAX_STEPS = 1_000_000
"""Most steps (lines of the compiled template) of one rendering; real templates need some hundred per message."""

_LARGEST_FILE = 1 << 20
_DAY = datetime.date(2024, 7, 26)  # that of Llama 3.2's template where it has no clock
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_COMPILED = "<template>"  # the file name that jinja2 gives to a compiled template


class _StepsError(Exception):
    """A template ran more steps than it may."""


class ChatTemplate:
    """The template of one data set: its own, or that of the tokenizer."""

    def __init__(self, tokenizer: Any, override: str | None) -> None:
        """Find the template.

        Args:
            tokenizer: A tokenizer of transformers, fast or slow.
            override: Template that takes the place of the tokenizer's own: text, or the path of a .jinja file.

        Raises:
            UnfitDataError: The file cannot be read.
        """
        self._tokenizer = tokenizer
        self._override = override if override is None or not is_template_path(override) else _read(override)

    def source(self, tools: Tools = None) -> str | None:
        """The text of the template for conversations with or without tools; None where there is none."""
        if self._override is not None:
            return self._override
        if not self._tokenizer.chat_template:
            return None
        try:
            return str(self._tokenizer.get_chat_template(tools=tools))
        except ValueError:  # several templates, none of them the default
            return None

    def render(self, messages: Sequence[Message], tools: Tools, add_generation_prompt: bool = False) -> str:
        """The text of a conversation, rendered in transformers' sandbox.

        Raises:
            DataError: The template refuses the conversation.
            UnfitDataError: It does not come to an end.
        """
        source = self.source(tools)
        with _guarded(source):
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages),
                    tools=list(tools) if tools else None,
                    chat_template=source,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                )
            )

    def has_marks(self, tools: Tools = None) -> bool:
        """Whether the template itself says, by `{% generation %}`, what the model writes."""
        return _MARK.search(self.source(tools) or "") is not None

    def render_marked(self, messages: Sequence[Message], tools: Tools) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and the bounds of the parts that the template marks by `{% generation %}`.

        Raises:
            DataError: The template refuses the conversation.
            UnfitDataError: It does not come to an end.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        source = self.source(tools)
        with _guarded(source):
            (text,), (marks,) = render_jinja_template(
                [list(messages)],
                tools=list(tools) if tools else None,
                chat_template=source,
                return_assistant_tokens_mask=True,
                **self._tokenizer.special_tokens_map,
            )
        return str(text), [(int(start), int(end)) for start, end in marks]


@contextmanager
def _guarded(source: str | None) -> Iterator[None]:
    """Run a template on a fixed day, for a limited number of steps, and explain what goes wrong in it."""
    try:
        _stop_clock(source)
        with _step_limit():
            yield
    except _StepsError:
        raise UnfitDataError(
            f"the chat template made more than {MAX_STEPS:,} steps for one conversation; it may never end"
        ) from None
    except MemoryError:  # no sample's fault alone, and the next one would take as much
        raise
    except Exception as error:  # a template raises what it likes
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"the chat template refuses the conversation: {reason}") from None


def _stop_clock(source: str | None) -> None:
    """Let a template that writes the date always see the same one: else a job that is restarted after midnight, or run
    again, trains on other tokens. transformers keeps the compiled template, and passes no function on to it."""
    if source is not None and "strftime_now" in source:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        _compile_jinja_template(source).globals["strftime_now"] = _DAY.strftime


@contextmanager
def _step_limit() -> Iterator[None]:
    """Stop a template that loops. Steps are counted, and not seconds, so that a slow machine refuses nothing more."""
    steps = 0

    def count(_frame: FrameType, _event: str, _argument: object) -> Any:
        nonlocal steps
        steps += 1
        if steps > MAX_STEPS:
            raise _StepsError
        return count

    def enter(frame: FrameType, _event: str, _argument: object) -> Any:
        return count if frame.f_code.co_filename == _COMPILED else None

    before = sys.gettrace()
    sys.settrace(enter)  # of this thread alone
    try:
        yield
    finally:
        sys.settrace(before)


def _read(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        text = content.decode("utf-8")
    except OSError as error:
        raise UnfitDataError(f"dataset.chat_template: {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UnfitDataError(f"dataset.chat_template: {path} is not UTF-8 text") from None
    if len(content) > _LARGEST_FILE or not text.strip():
        size = "is empty" if not text.strip() else "is larger than 1 MiB"
        raise UnfitDataError(f"dataset.chat_template: {path} {size}; give a chat template in Jinja")
    return text
