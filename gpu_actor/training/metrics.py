"""`metrics.jsonl` of a job: a row per logged optimizer step, and one per evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from gpu_actor.adapters.whole_files import write_bytes
from gpu_actor.contract import file_names

_Number = TypeVar("_Number", int, float)


def append_metrics(output_dir: Path, **row: Any) -> None:
    """Write one more row; its `step` says after which optimizer step it was."""
    with (output_dir / file_names.METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def trim_metrics(output_dir: Path, step: int) -> None:
    """Drop the rows of `metrics.jsonl` after `step`: they will be written again, and a torn last line with them."""
    path = output_dir / file_names.METRICS
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            break
    write_bytes(path, "".join(kept).encode())


def added(sums: Mapping[str, _Number], more: Mapping[str, _Number]) -> dict[str, _Number]:
    """Sums by name, with what is new; a step need not have every figure."""
    return {**sums, **{name: sums.get(name, 0) + value for name, value in more.items()}}
