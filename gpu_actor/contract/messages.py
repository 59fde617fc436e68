"""How a message shows an error, a value or a base model."""

from __future__ import annotations

import re
import reprlib
from typing import Any

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_short.maxlist = _short.maxdict = 4
_short.maxlevel = 3


def shorten(value: Any) -> str:
    """A value as it appears in an error message."""
    return _short.repr(value)


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception's text on one line, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def short_model_name(base_model: str) -> str:
    """The last part of a base model's reference, in lower case: `smollm2-135m-instruct`."""
    return re.split(r"[/\\]", base_model.rstrip("/\\"))[-1].lower()
