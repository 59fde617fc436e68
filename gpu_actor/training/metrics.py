"""`metrics.jsonl` of a job: a row per logged optimizer step, and one per evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from gpu_actor.paths import file_names

_Number = TypeVar("_Number", int, float)


def as_row(row: Mapping[str, Any]) -> str:
    """A row as a line of the file; its `step` says after which optimizer step it was."""
    return json.dumps(row) + "\n"


def append_rows(output_dir: Path, rows: Iterable[str]) -> None:
    """Write some more rows, all or none.

    Raises:
        OSError: They cannot be written, as on a full disk.
    """
    path = output_dir / file_names.METRICS
    left = "".join(rows).encode()
    with open(path, "ab", buffering=0, opener=_no_link) as file:  # a buffer would be written again at the end
        before = file.tell()
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(before)  # half a row would spoil those that come after it
            raise


def trim_metrics(output_dir: Path, step: int) -> None:
    """Drop the rows of `metrics.jsonl` after `step`: they will be written again, and a torn last line with them.

    The file is cut, not written anew, which a full disk would not allow.
    """
    path = output_dir / file_names.METRICS
    if not path.exists():
        return
    kept = 0
    with open(path, "r+b", opener=_no_link) as file:
        for line in file:
            try:
                if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                    break
            except (ValueError, KeyError, TypeError):
                break
            kept += len(line)
        file.truncate(kept)


def _no_link(path: str, flags: int) -> int:
    """Opens the file itself: a link in its place, which somebody else has put there, may lead anywhere."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def added(sums: Mapping[str, _Number], more: Mapping[str, _Number]) -> dict[str, _Number]:
    """Sums by name, with what is new; a step need not have every figure."""
    return {**sums, **{name: sums.get(name, 0) + value for name, value in more.items()}}
