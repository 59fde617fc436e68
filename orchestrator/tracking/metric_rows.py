"""The rows of a `metrics.jsonl` that grows, and their numbers under the names that transformers gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

_MOST_BYTES = 2**20  # that are read at a time: what waits, waits in the file

Row: TypeAlias = Mapping[str, Any]
Place: TypeAlias = tuple[int, int]
"""Optimizer step, and 1 for an evaluation, which comes after the step's own row."""


class MetricRows:
    """Reads what was added to a job's metrics since the last look.

    An attempt that goes on from a checkpoint cuts the file off there and writes the rows behind it again, perhaps as
    many as were read before somebody looks. So it is read from the start unless the line read last is still there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._last = b""  # line that was read

    def more(self) -> list[Row]:
        """The next rows; whoever reads them knows by `place` which of them came before.

        Raises:
            OSError: The file cannot be read; one that is not there is empty.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset - len(self._last))
                if file.read(len(self._last)) != self._last:
                    self._offset = file.seek(0)
                data = file.read(_MOST_BYTES)
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        lines = whole.splitlines(keepends=True)
        if lines or not self._offset:
            self._last = lines[-1] if lines else b""
        rows = (_row(line) for line in lines)
        return [row for row in rows if row is not None]


def _row(line: bytes) -> Row | None:
    """A line of metrics; None where it is none."""
    try:
        row = json.loads(line)
        return row if isinstance(row, dict) and isinstance(row["step"], int) and float(row["time"]) else None
    except (ValueError, KeyError, TypeError):
        return None


def place(row: Row) -> Place:
    """Where a row belongs; no two rows of a run have the same place."""
    return row["step"], int("eval_loss" in row)


def numbers(row: Row, before: Row | None) -> dict[str, float]:
    """What a tracker gets of a row: `train/loss`, `train/rewards/margins`, `eval/loss` and so on.

    Args:
        row: Of a step or an evaluation.
        before: The latest row of a step before it, from which `train/tokens_per_second` follows.
    """
    is_number = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
    if place(row)[1]:
        return {f"eval/{name[5:]}": value for name, value in is_number.items() if name.startswith("eval_")}
    found = {f"train/{name}": value for name, value in is_number.items() if name not in ("step", "time")}
    if before is not None and "tokens" in row and row["time"] > before["time"]:
        steps = row["step"] - before["step"]
        found["train/tokens_per_second"] = row["tokens"] * steps / (row["time"] - before["time"])
    return found
