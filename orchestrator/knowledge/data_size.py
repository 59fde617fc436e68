"""How much work a job's data are, guessed before anybody has read them: from the first lines and the file's size."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_actor.contract.config import DatasetConfig, DataSource

_SAMPLE_BYTES = 64 * 1024
_BYTES_PER_TOKEN = 4.0  # of text, in most tokenizers and languages


@dataclass(frozen=True)
class DataSize:
    """Number of training samples that an epoch takes, and their mean length in tokens before any cut."""

    samples: int
    mean_tokens: float


def guess_size(dataset: DatasetConfig) -> DataSize | None:
    """The size of a data set from its file; None where the file cannot tell (a hub id, a table, nothing readable).

    Nobody has looked into the file yet, and the scheduler asks in every look: whatever is in it, nothing is raised.
    """
    try:
        sizes = [_guess(source, Path(source.path)) for source in dataset.sources]
    except (OSError, ValueError, RecursionError):
        return None
    known = [
        (source.samples_per_epoch(size.samples), size)
        for source, size in zip(dataset.sources, sizes, strict=True)
        if size
    ]
    if len(known) < len(sizes):
        return None
    if not dataset.mix:
        return known[0][1]
    samples = sum(taken for taken, _ in known)
    return DataSize(samples, sum(taken * size.mean_tokens for taken, size in known) / samples)


def guess_sizes(datasets: Mapping[str, DatasetConfig]) -> dict[str, DataSize | None]:
    """The sizes of several data sets by the same keys; one that stands there many times is looked at once.

    Args:
        datasets: By any key, such as a job's id. The jobs of a grid mostly share theirs.
    """
    sizes: dict[str, DataSize | None] = {}
    settings = {key: dataset.model_dump_json() for key, dataset in datasets.items()}
    for key, text in settings.items():
        if text not in sizes:
            sizes[text] = guess_size(datasets[key])
    return {key: sizes[text] for key, text in settings.items()}


def _guess(dataset: DataSource, path: Path) -> DataSize | None:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_SAMPLE_BYTES)
    records = _records(path, head, whole=size <= len(head))
    if not records:
        return None
    used = sum(count for count, _ in records)
    samples = len(records) if size <= len(head) else max(1, round(size / used * len(records)))
    held_out = dataset.val_size if dataset.val_size >= 1 else samples * dataset.val_size
    tokens = sum(_tokens(record, count) for count, record in records) / len(records)
    return DataSize(max(1, samples - round(held_out)), max(1.0, tokens))


def _records(path: Path, head: bytes, *, whole: bool) -> list[tuple[int, Any]]:
    """Bytes and value of each record in the head of a file."""
    if path.suffix.lower() == ".json":
        return _array(head.decode("utf-8", "replace"))
    if path.suffix.lower() != ".jsonl":
        return []
    lines = head.splitlines(keepends=True)
    if not whole and lines and not lines[-1].endswith(b"\n") and len(lines) > 1:
        lines = lines[:-1]  # cut off
    records = []
    for line in lines:
        try:
            records.append((len(line), json.loads(line)))
        except (ValueError, RecursionError):
            if line.strip():
                records.append((len(line), None))
    return records


def _array(text: str) -> list[tuple[int, Any]]:
    """The records at the start of a JSON array, which may be cut off."""
    decoder, place = json.JSONDecoder(), text.find("[") + 1
    records: list[tuple[int, Any]] = []
    while place:
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return records
        records.append((end - place + 2, value))
        place = end
    return records


def _tokens(record: Any, size: int) -> float:
    """Tokens of one record: its ids, where it holds them, else by the length of its texts."""
    if not isinstance(record, dict):
        return size / _BYTES_PER_TOKEN
    if isinstance(record.get("input_ids"), list):
        return len(record["input_ids"])
    return sum(map(_text_bytes, record.values())) / _BYTES_PER_TOKEN


def _text_bytes(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    if isinstance(value, list):
        return sum(map(_text_bytes, itertools.islice(value, 1000)))
    if isinstance(value, dict):
        return sum(map(_text_bytes, value.values()))
    return 0
