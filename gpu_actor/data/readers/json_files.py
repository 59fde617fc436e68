"""Records of .jsonl and .json files, read in chunks. What is no plain JSON (a key given twice) is refused."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gpu_actor.contract.errors import DataError
from gpu_actor.contract.messages import shorten
from gpu_actor.data.readers.record import LONGEST_RECORD, LongRecordError, Record

_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_BLANK = re.compile(r"[ \t\r\n]*")
_LONGEST_TOKEN = 16  # characters of the longest thing that the end of a chunk can cut in a way that looks like an error


class _DoubledKeyError(ValueError):
    """An object gives a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise _DoubledKeyError(f"the key {shorten(doubled)} is given twice")
    return record


_decoder = json.JSONDecoder(object_pairs_hook=_object)


def read_jsonl(path: Path, longest: int = LONGEST_RECORD) -> Iterator[tuple[int, Record | DataError]]:
    """The records of a file with one object per line, and their line numbers."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(longest + 1):
            number += 1
            if number == 1:
                line = line.removeprefix(_BOM)
            if len(line) > longest:
                yield number, _too_long(longest)
                return
            if line.strip():
                yield number, _parse_line(line)


def _parse_line(line: bytes) -> Record | DataError:
    try:
        value = _decoder.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return bad_utf8(error)
    except json.JSONDecodeError as error:
        return DataError(f"not valid JSON: {error.msg} (column {error.colno}); each line must hold one whole object")
    except (RecursionError, ValueError) as error:
        return DataError(f"not valid JSON: {_reason(error)}")
    return _as_record(value)


def read_json(path: Path, longest: int = LONGEST_RECORD) -> Iterator[tuple[int, Record | DataError]]:
    """The records of a file that is one list of objects, and the numbers of the lines on which they start."""
    with path.open("rb") as file:
        window = _Window(file, longest)
        try:
            yield from _read_list(window)
        except _BrokenError as error:
            yield error.line, error.problem


def _read_list(window: _Window) -> Iterator[tuple[int, Record | DataError]]:
    first = window.peek()
    if not first:
        return
    if first != "[":
        message = "a .json file must hold one list of objects; a file with one object per line is called .jsonl"
        raise _BrokenError(window.place()[0], DataError(message))
    window.at += 1
    more = window.peek() != "]"
    while more:
        line, value = window.value()
        yield line, _as_record(value)
        more = window.peek() == ","
        if more:
            window.at += 1
            window.peek()
    if window.peek() != "]":
        raise window.broken("Expecting ',' or ']'")
    window.at += 1
    if window.peek():
        raise window.broken("Extra data after the list")


class _BrokenError(Exception):
    """The file cannot be read on.

    Attributes:
        line: Where.
        problem: Why.
    """

    def __init__(self, line: int, problem: DataError) -> None:
        super().__init__(line, problem)
        self.line, self.problem = line, problem


class _Window:
    """The part of a JSON text that is in memory: what is read goes out at the front, more comes in at the end.

    The package ijson cannot take its place: its events and errors have no lines, nothing limits the size of a record,
    and yajl, on which it builds, turns half of a surrogate pair into a question mark.

    Attributes:
        at: Where in this part the reading stands.
    """

    def __init__(self, file: BinaryIO, longest: int) -> None:
        self.at = 0
        self._longest = longest
        self._text = ""
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._counted, self._line, self._column = 0, 1, 1  # a position in this part, and where in the file it is
        self._ended = False

    def peek(self) -> str:
        """Go on to the next character that is not blank, and return it; empty at the end."""
        while True:
            match = _BLANK.match(self._text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._read_on():
                return ""

    def value(self) -> tuple[int, Any]:
        """The value that starts here, and its line; the reading stands behind it afterwards."""
        while True:
            try:
                value, end = _decoder.raw_decode(self._text, self.at)
            except json.JSONDecodeError as error:
                broken = self.broken(error.msg, error.pos)
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _LONGEST_TOKEN
                if cut and self._read_on():
                    continue
                raise broken from None
            except (RecursionError, ValueError) as error:
                raise _BrokenError(self.place()[0], DataError(f"not valid JSON: {_reason(error)}")) from None
            if end == len(self._text) and self._read_on():  # a number may go on
                continue
            line = self.place()[0]
            self.at = end
            return line, value

    def place(self, position: int | None = None) -> tuple[int, int]:
        """Line and column of a position from `at` on, by default of `at` itself."""
        if self.at > self._counted:
            self._line, self._column = self._count(self.at)
            self._counted = self.at
        return self._count(self.at if position is None else position)

    def _count(self, position: int) -> tuple[int, int]:
        lines = self._text.count("\n", self._counted, position)
        if not lines:
            return self._line, self._column + position - self._counted
        return self._line + lines, position - self._text.rfind("\n", self._counted, position)

    def broken(self, message: str, position: int | None = None) -> _BrokenError:
        """What to raise where the text is no JSON."""
        line, column = self.place(position)
        return _BrokenError(line, DataError(f"not valid JSON: {message} (column {column})"))

    def _read_on(self) -> bool:
        """Forget what is behind, and read at least as much as is left; False at the end of the file."""
        if self._ended:
            return False
        self.place()
        self._text, self.at, self._counted = self._text[self.at :], 0, 0
        if len(self._text) > self._longest:
            raise _BrokenError(self._line, _too_long(self._longest))
        chunk = self._file.read(max(min(_CHUNK, self._longest), len(self._text)))
        self._ended = not chunk
        try:
            self._text += self._decode(chunk, self._ended)
        except UnicodeDecodeError as error:
            line, column = self.place(len(self._text))
            lines = error.object.count(b"\n", 0, error.start)
            raise _BrokenError(line + lines, bad_utf8(error, 0 if lines else column - 1)) from None
        return not self._ended


def _too_long(longest: int) -> LongRecordError:
    return LongRecordError(f"a record of more than {longest >> 20} MiB; check the quotes and line ends before it")


def _as_record(value: Any) -> Record | DataError:
    if isinstance(value, dict):
        return value
    return DataError(f"a record must be a JSON object, not {shorten(value)}")


def bad_utf8(error: UnicodeDecodeError, before: int = 0) -> DataError:
    """What to say of bytes that are no UTF-8; `before` is the number of characters in front of them on their line."""
    column = before + error.start - error.object.rfind(b"\n", 0, error.start)
    return DataError(f"not UTF-8: byte 0x{error.object[error.start]:02x} (column {column}); save the file as UTF-8")


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]
