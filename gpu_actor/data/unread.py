"""The columns of a data file that its format does not read, so that whoever gave it learns of them."""

from __future__ import annotations

from collections.abc import Collection

from gpu_actor.data.meaning import holds_something
from gpu_actor.data.readers.record import Record

_NAMED = 8  # columns, in words
_LONGEST_NAME = 40
_REMEMBERED = 1000  # columns; a file whose records are dictionaries of anything may have one for each record


class UnreadColumns:
    """Gathers the columns that hold something and are not read, each once, in the order of the file."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def add(self, record: Record, read: Collection[str]) -> None:
        """Take in one record.

        Args:
            record: The record.
            read: The columns that its format reads.
        """
        for name, value in record.items():
            if name in read or name in self._names or not holds_something(value):
                continue
            if len(self._names) < _REMEMBERED:
                self._names[name] = None

    def in_words(self) -> str:
        """`id, source`, or `id, source and 492 more`: a few hundred characters at most; empty where all are read."""
        names = [_printable(name) for name in list(self._names)[:_NAMED]]
        if len(names) == len(self._names):
            return ", ".join(names)
        at_least = "at least " if len(self._names) == _REMEMBERED else ""
        return f"{', '.join(names)} and {at_least}{len(self._names) - _NAMED} more"


def _printable(name: str) -> str:
    short = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
    return short if short.isprintable() and short.strip() else ascii(short)
