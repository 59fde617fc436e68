"""Records of parquet files and of data sets that the library `datasets` knows, in batches of rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_actor.contract.errors import DataError
from gpu_actor.contract.messages import one_line, shorten
from gpu_actor.data.readers.record import Record

Rows = Iterator[tuple[int, Record | DataError]]
_BATCH = 64  # rows that are Python objects at a time
_BUFFER = 1 << 20  # bytes of a column that are read at a time; without it a whole row group, often the whole file


def read_parquet(path: Path) -> Rows:
    """The rows of a parquet file, counted from 1."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path}: parquet files need pyarrow; pip install loray[data]") from None
    number = 0
    try:
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER) as file:
            for batch in file.iter_batches(batch_size=_BATCH, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield number, _without_nulls(row)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        yield number + 1, DataError(f"the parquet file cannot be read on: {one_line(error)}")


def is_saved_dataset(path: Path) -> bool:
    """Whether a path is a folder that `save_to_disk()` of the library `datasets` wrote."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def read_saved_dataset(path: Path, name: str | None, split: str | None) -> Rows:
    """The rows of a data set that `save_to_disk()` wrote, counted from 1."""
    datasets = _datasets(str(path))
    if name is not None:
        raise DataError(f"{path}: dataset.name is for data sets of the hub; remove it")
    try:
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:  # of many libraries
        raise DataError(f"{path}: cannot be opened: {one_line(error)}") from None
    if isinstance(dataset, datasets.DatasetDict):
        chosen = split or "train"
        if chosen not in dataset:
            raise DataError(f"{path}: dataset.split: has no split {shorten(chosen)}; it has {', '.join(dataset)}")
        dataset = dataset[chosen]
    elif split is not None:
        raise DataError(f"{path}: dataset.split: this data set is not divided into splits; remove it")
    return _rows(dataset)


def read_hub_dataset(ref: str, name: str | None, split: str) -> Rows:
    """The rows of a data set of the hub, counted from 1; `datasets` keeps them in files that it maps into memory."""
    datasets = _datasets(ref)
    if Path(ref).exists():  # `datasets` would take it, wherever this process happens to run
        raise DataError(f"{ref}: is a hub id, and a path as well; give the path from '/' on")
    try:
        dataset = datasets.load_dataset(ref, name=name, split=split)
    except Exception as error:  # of many libraries
        raise DataError(
            f"{ref}: there is no such file, and `datasets` cannot load it from the hub: {one_line(error)}; check "
            "dataset.path, dataset.name and dataset.split"
        ) from None
    return _rows(dataset)


def _datasets(ref: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{ref}: is no file of a kind that is known; a data set of the hub needs the library `datasets`: "
            "pip install loray[data]"
        ) from None
    return datasets


def _rows(dataset: Any) -> Rows:
    number = 0
    for table in dataset.with_format("arrow").iter(batch_size=_BATCH):
        for row in table.to_pylist():
            number += 1
            yield number, _without_nulls(row)


def _without_nulls(value: Any) -> Any:
    """A value without the empty fields that a table gives every object of a column, because another one has them."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
