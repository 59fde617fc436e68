"""How a message shows an error, a value or a base model."""

from __future__ import annotations

import re
import reprlib
from typing import Any

# ECMA-48: a control sequence (colours, cursor), an operating system command (titles, links), or a short escape
_TERMINAL_CODE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])|\x9b[0-?]*[ -/]*[@-~]"
)
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_short.maxlist = _short.maxdict = 4
_short.maxlevel = 3


def shorten(value: Any) -> str:
    """A value as it appears in an error message."""
    return _short.repr(value)


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception's text on one line, shortened, without what a terminal would obey."""
    return shortened(plain(str(error)) or type(error).__name__, limit)


def shortened(text: str, limit: int = 300) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def plain(text: str) -> str:
    """A text on one line, without colours, control characters and the like: others may have written it."""
    printable = (character if character.isprintable() else " " for character in _TERMINAL_CODE.sub("", text))
    return " ".join("".join(printable).split())


def short_model_name(base_model: str) -> str:
    """The last part of a base model's reference, in lower case: `smollm2-135m-instruct`."""
    return re.split(r"[/\\]", base_model.rstrip("/\\"))[-1].lower()
