"""The records of a data file with their line numbers, or what is wrong with them. Free of torch."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_actor.errors import DataError

Record = dict[str, Any]
_BOM = b"\xef\xbb\xbf"
_BLANK = re.compile(r"[ \t\r\n]*")
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_short.maxlist = _short.maxdict = 4
_short.maxlevel = 3


def shorten(value: Any) -> str:
    """A value as it appears in an error message."""
    return _short.repr(value)


def read_records(path: Path) -> Iterator[tuple[int, Record | DataError]]:
    """Stream the records of a .jsonl or .json file.

    Yields:
        The number of the line on which a record starts, and the record, or what is wrong with that line.

    Raises:
        DataError: The file cannot be opened or has another extension.
    """
    readers = {".jsonl": _read_jsonl, ".json": _read_json}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: the name must end in .jsonl (one object per line) or .json (a list of objects)")
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the path of a .jsonl or .json file")
    try:
        yield from reader(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _read_jsonl(path: Path) -> Iterator[tuple[int, Record | DataError]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(_BOM)
            if line.strip():
                yield number, _parse_line(line)


def _parse_line(line: bytes) -> Record | DataError:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _bad_utf8(error)
    except json.JSONDecodeError as error:
        return DataError(f"not valid JSON: {error.msg} (column {error.colno}); each line must hold one whole object")
    except (RecursionError, ValueError) as error:
        return DataError(f"not valid JSON: {_reason(error)}")
    return _as_record(value)


def _read_json(path: Path) -> Iterator[tuple[int, Record | DataError]]:
    try:
        text = path.read_bytes().removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        yield error.object.count(b"\n", 0, error.start) + 1, _bad_utf8(error)
        return
    start = _skip_blank(text, 0)
    if start == len(text):
        return
    if text[start] != "[":
        yield (
            text.count("\n", 0, start) + 1,
            DataError("a .json file must hold one list of objects; a file with one object per line is called .jsonl"),
        )
        return
    yield from _read_list(text, start + 1)


def _read_list(text: str, position: int) -> Iterator[tuple[int, Record | DataError]]:
    """The items of the JSON list whose opening bracket lies before `position`, one at a time."""
    decoder, line, counted = json.JSONDecoder(), 1, 0
    position = _skip_blank(text, position)
    more = text[position : position + 1] != "]"
    while True:
        line, counted = line + text.count("\n", counted, position), position
        try:
            if not more:
                if text[position : position + 1] != "]":
                    raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
                if _skip_blank(text, position + 1) != len(text):
                    raise json.JSONDecodeError("Extra data after the list", text, position + 1)
                return
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            yield error.lineno, DataError(f"not valid JSON: {error.msg} (column {error.colno})")
            return
        except (RecursionError, ValueError) as error:
            yield line, DataError(f"not valid JSON: {_reason(error)}")
            return
        yield line, _as_record(value)
        position = _skip_blank(text, position)
        more = text[position : position + 1] == ","
        position = _skip_blank(text, position + 1) if more else position


def _skip_blank(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    return match.end() if match else position


def _as_record(value: Any) -> Record | DataError:
    if isinstance(value, dict):
        return value
    return DataError(f"a record must be a JSON object, not {shorten(value)}")


def _bad_utf8(error: UnicodeDecodeError) -> DataError:
    column = error.start - error.object.rfind(b"\n", 0, error.start)
    byte = error.object[error.start]
    return DataError(f"not UTF-8: byte 0x{byte:02x} (column {column}); save the file as UTF-8")


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]
