"""Records of a .csv file: a header, then one record per row, every value text."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gpu_actor.contract.errors import DataError
from gpu_actor.contract.messages import shorten
from gpu_actor.data.readers.json_files import bad_utf8
from gpu_actor.data.readers.record import LONGEST_RECORD, LongRecordError, Record


def read_csv(path: Path, longest: int = LONGEST_RECORD) -> Iterator[tuple[int, Record | DataError]]:
    """The records of a file with commas, quotes as RFC 4180 has them, and the lines on which they start.

    The first row that cannot be read ends the reading: where the next one starts is not known then.
    """
    csv.field_size_limit(LONGEST_RECORD)  # for the whole process; the module's own limit is shorter than a chat
    with path.open("rb") as file:
        rows = csv.reader(_lines(file, longest), strict=True)
        line, header = 1, None
        try:
            for row in rows:
                if row and header is None:
                    header = _header(row)
                elif any(map(str.strip, row)):  # a row of commas alone is what Excel leaves at the end
                    yield line, _record(header or [], row)
                line = rows.line_num + 1
        except DataError as error:
            yield rows.line_num + 1 if header else line, error
        except csv.Error as error:
            remedy = "check the quotes (one inside a value is doubled)"
            if "new-line" in str(error):
                remedy = "its lines end with a carriage return alone; save it with line feeds (\\n)"
            yield line, DataError(f"not valid CSV: {error}; {remedy}")


def _lines(file: BinaryIO, longest: int) -> Iterator[str]:
    """The lines of a file as text; a record may cover several."""
    first = True
    while line := file.readline(longest + 1):
        if len(line) > longest:
            raise LongRecordError(f"a line of more than {longest >> 20} MiB; check the line ends")
        try:
            yield line.decode("utf-8-sig" if first else "utf-8")
        except UnicodeDecodeError as error:
            raise bad_utf8(error) from None
        first = False


def _header(row: list[str]) -> list[str]:
    if len(row) == 1 and re.search(r"[;\t|]", row[0]):
        raise DataError(f"the header is one column, {shorten(row[0])}; values are separated by commas, save it so")
    doubled = {name for name in row if row.count(name) > 1}
    if doubled:
        raise DataError(f"the header names the column {shorten(min(doubled))} twice")
    return row


def _record(header: list[str], row: list[str]) -> Record | DataError:
    if len(row) != len(header):
        return DataError(
            f"{len(row)} values for the {len(header)} columns {shorten(header)}; put quotes around a value with a comma"
        )
    for name, value in zip(header, row, strict=True):
        if value != value.lstrip() and len(text := value.strip()) > 1 and text[0] == text[-1] == '"':
            return DataError(
                f"{shorten(name)}: a blank stands before the quotes of {shorten(value)}, so that they are part of the "
                "value; begin quotes right behind the comma"
            )
    return dict(zip(header, row, strict=True))
