"""Checks of the data set that a job names before anything starts. An empty answer means that all is well."""

from __future__ import annotations

import contextlib
import itertools
import os
from importlib.util import find_spec
from pathlib import Path

from gpu_actor.contract.config import DatasetConfig, DataSource, TrainingConfig
from gpu_actor.contract.errors import DataError, NoAnswerError
from gpu_actor.contract.objective_fields import PAIR_OBJECTIVES
from gpu_actor.data.formats import SampleReader
from gpu_actor.data.readers.parquet_and_hub import is_saved_dataset
from gpu_actor.data.readers.read_records import DATA_SUFFIXES, is_hub_dataset, read_records
from gpu_actor.data.readers.record import LongRecordError, Record
from orchestrator.validation.problems import show

_INSTALL = "pip install loray[data]"
_PEEKED = 20  # records that are read before anything starts
_PEEKED_BYTES = 1 << 20  # of each of them at most: in memory, a record may be twenty times as long
_ANY_TOKEN = 2**31  # tokens that a base model may have, as far as is known here


def dataset_problem(value: str) -> str:
    """What is wrong with the path, or hub id, of a data set."""
    path = Path(value)
    if is_hub_dataset(value) or (path.is_dir() and is_saved_dataset(path)):
        what = "is a folder of `datasets`" if path.is_dir() else "is no file, but may be a data set of the hub"
        return "" if find_spec("datasets") else f"{show(value)} {what}, which needs the library `datasets`: {_INSTALL}"
    if not path.exists():
        return f"{show(value)} does not exist; relative paths start at the job file"
    if path.is_dir():
        return f"{show(value)} is a folder; give one {' or '.join(DATA_SUFFIXES)} file"
    if path.suffix.lower() not in DATA_SUFFIXES and path.is_file():
        return f"{show(value)} ends in {show(path.suffix)}; allowed: {', '.join(DATA_SUFFIXES)}"
    if path.suffix.lower() == ".parquet" and not find_spec("pyarrow"):
        return f"{show(value)} needs the library `pyarrow`: {_INSTALL}"
    return _file_problem(path)


def template_problem(value: str) -> str:
    """What is wrong with the path of a chat template."""
    path = Path(value)
    if not path.exists():
        return f"{show(value)} does not exist; relative paths start at the job file"
    return _file_problem(path)


def split_problem(data: DataSource) -> str:
    """Whether a plain file is given what only data sets of the hub have."""
    if is_hub_dataset(data.path) or os.path.isdir(data.path):
        return ""
    given = [name for name in ("split", "name") if getattr(data, name) is not None]
    return f"{' and '.join(given)}: only data sets of the hub have this; remove it for a file" if given else ""


def objective_problem(data: DataSource, training: TrainingConfig) -> str:
    """Whether the format of the data is one that the objective learns from."""
    pairs, objective = data.format == "preference", training.objective
    if pairs and objective not in PAIR_OBJECTIVES:
        learns = "single answers" if objective == "kto" else "samples"
        learns = f"training.objective is {objective}, which learns from {learns}"
        return f"preference: {learns}; set it to dpo, cpo, orpo or simpo"
    if data.format == "text" and objective == "kto":
        return "text: training.objective is kto, which learns from answers to prompts; use prompt_completion"
    if data.format == "auto" or pairs or objective not in PAIR_OBJECTIVES:
        return ""
    return f"{data.format}: training.objective is {objective}, which learns from pairs; the format is preference"


def first_records_remark(data: DatasetConfig, training: TrainingConfig) -> str:
    """What the first records of text files tell a person: why they cannot be used, or which columns are not read.

    Tables and data sets of the hub are not opened: that would take long. Nor are records of more than a mebibyte.
    """
    remarks = [_first_records_remark(source, training) for source in data.sources]
    if not data.mix:
        return remarks[0]
    return "; ".join(f"dataset[{number}]: {remark}" for number, remark in enumerate(remarks) if remark)


def _first_records_remark(data: DataSource, training: TrainingConfig) -> str:
    path = Path(data.path)
    text_file = path.suffix.lower() in (".jsonl", ".json", ".csv") and path.is_file()
    if not text_file or is_hub_dataset(data.path):
        return ""
    reader = SampleReader(data, training, _ANY_TOKEN)
    try:
        for place, record in itertools.islice(read_records(data, _PEEKED_BYTES), _PEEKED):
            if isinstance(record, LongRecordError):
                break  # whoever trains on it will see
            if problem := _record_problem(reader, record):
                return f"its data cannot be used: {place}: {problem}"
    except DataError as error:  # of the file as a whole
        return f"its data cannot be used: {error}"
    unread = reader.unread.in_words()
    return f"columns not read: {unread}" if unread else ""


def _record_problem(reader: SampleReader, record: Record | DataError) -> str:
    if isinstance(record, DataError):
        return str(record)
    try:
        with contextlib.suppress(NoAnswerError):
            reader.read(record)
    except DataError as error:
        return str(error)
    return ""


def _file_problem(path: Path) -> str:
    shown = show(str(path))
    if not path.is_file():
        return f"{shown} is a {'folder' if path.is_dir() else 'device or a pipe'}; give a file"
    if not os.access(path, os.R_OK):
        return f"{shown} may not be read by this user; change its permissions"
    if path.stat().st_size == 0:
        return f"{shown} is empty; give a file with content"
    return ""
