"""The records of a data set one after the other, each with its place, or what is wrong with them. Free of torch.

No reader holds more than one record, one chunk or one batch of rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from gpu_actor.contract.config import DataSource
from gpu_actor.contract.errors import DataError
from gpu_actor.contract.messages import shorten
from gpu_actor.data.readers.csv_file import read_csv
from gpu_actor.data.readers.json_files import read_json, read_jsonl
from gpu_actor.data.readers.parquet_and_hub import is_saved_dataset, read_hub_dataset, read_parquet, read_saved_dataset
from gpu_actor.data.readers.record import LONGEST_RECORD, Record
from gpu_actor.paths.locations import is_hub_id

Numbered = Iterator[tuple[int, Record | DataError]]
_TEXT_READERS: dict[str, Callable[[Path, int], Numbered]] = {".jsonl": read_jsonl, ".json": read_json, ".csv": read_csv}
DATA_SUFFIXES = (*_TEXT_READERS, ".parquet")
_KINDS = ".jsonl (one object per line), .json (a list of objects), .csv or .parquet"
# A record may lack these; every other column that dataset.columns names must be in each record.
_OPTIONAL = ("input", "system", "history", "tools", "labels")


def is_hub_dataset(ref: str) -> bool:
    """Whether a data set's path has the form of a hub id, `organisation/name`, and is no name of a data file."""
    return "/" in ref and is_hub_id(ref) and Path(ref).suffix.lower() not in DATA_SUFFIXES


def read_records(config: DataSource, longest: int = LONGEST_RECORD) -> Iterator[tuple[str, Record | DataError]]:
    """Stream the records of a data set, their columns under the names that Loray knows.

    Args:
        config: Where they are.
        longest: Most bytes of a record of a text file; a longer one is a `LongRecordError`.

    Yields:
        Where a record is (`file:line`, or the row of a table), and the record or what is wrong with it.

    Raises:
        DataError: The data set cannot be opened, or lacks a column that `columns` names.
    """
    path = Path(config.path)
    if is_hub_dataset(config.path):
        rows: Numbered = read_hub_dataset(config.path, config.name, config.split or "train")
    elif is_saved_dataset(path):
        rows = read_saved_dataset(path, config.name, config.split)
    else:
        rows = _read_file(path, config, longest)
    separator = ":" if path.suffix.lower() in (".jsonl", ".json", ".csv") else ": row "
    try:
        for number, record in _renamed(rows, config):
            yield f"{path}{separator}{number}", record
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _read_file(path: Path, config: DataSource, longest: int) -> Numbered:
    for field in ("split", "name"):
        if getattr(config, field) is not None:
            raise DataError(
                f"{path}: dataset.{field} is for data sets of the hub and folders that datasets saved; remove it"
            )
    suffix = path.suffix.lower()
    if suffix not in DATA_SUFFIXES:
        raise DataError(f"{path}: the name must end in {_KINDS}")
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the path of a {_KINDS} file")
    return read_parquet(path) if suffix == ".parquet" else _TEXT_READERS[suffix](path, longest)


def _renamed(rows: Iterable[tuple[int, Record | DataError]], config: DataSource) -> Numbered:
    """The records with the columns of `dataset.columns` under their new names."""
    unseen = {column for ours, column in config.columns.items() if ours in _OPTIONAL}
    bad = good = 0
    for number, record in rows:
        if isinstance(record, DataError):
            bad += 1
        else:
            good += 1
            unseen -= record.keys()
            record = _rename(record, config.columns) if config.columns else record
        yield number, record
    if unseen and good and not bad:
        ours = next(name for name, column in config.columns.items() if column in unseen)
        raise DataError(f"{config.path}: dataset.columns.{ours}: no record has a column {shorten(min(unseen))}")


def _rename(record: Record, columns: dict[str, str]) -> Record | DataError:
    for ours, column in columns.items():
        if column not in record and ours not in _OPTIONAL:
            return DataError(
                f"{ours}: dataset.columns takes it from {shorten(column)}, which is not there; "
                f"this record has {shorten(list(record))}"
            )
    # a field that is not there under the other name may stand under its own: files are mixed
    taken = set(columns.values()) | {ours for ours, column in columns.items() if column in record}
    kept = {name: value for name, value in record.items() if name not in taken}
    return kept | {ours: record[column] for ours, column in columns.items() if column in record}
