"""A grid of settings: its axes, and a readable name for each combination."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.validation.field_index import ITEM, FieldIndex, dotted
from orchestrator.validation.problems import show, unknown_field_hint

Settings = Sequence[tuple[tuple[str, ...], Any]]
"""Fields and the values that they take in one combination."""

NOT_IN_A_GRID = ("name", "output_dir")
_SHORT = {
    "base_model": "base",
    "dataset.path": "data",
    "lora.lora_alpha": "alpha",
    "lora.lora_dropout": "dropout",
    "lora.target_modules": "targets",
    "lora.use_rslora": "rslora",
    "lora.use_dora": "dora",
    "lora.init_lora_weights": "start",
    "training.loraplus_lr_ratio": "ratio",
    "lora.init_adapter": "init",
    "training.objective": "objective",
    "training.reference_adapter": "reference",
    "training.learning_rate": "lr",
    "training.num_train_epochs": "epochs",
    "training.max_steps": "steps",
    "training.per_device_train_batch_size": "bs",
    "training.gradient_accumulation_steps": "accum",
    "training.lr_scheduler_type": "schedule",
    "training.warmup_ratio": "warmup",
    "training.weight_decay": "wd",
    "training.cutoff_len": "len",
    "queue.max_retries": "retries",
}
_PATHS = ("base_model", "dataset.path", "lora.init_adapter", "training.reference_adapter")
_LONGEST_LABEL = 24


@dataclass(frozen=True)
class Axis:
    """One field of a grid and the values that it takes."""

    path: tuple[str, ...]
    values: Sequence[Any]

    def labels(self) -> list[str]:
        """A word for each value, all different, of the characters that a job's name may hold."""
        labels = [_label(value, is_path=dotted(self.path) in _PATHS) for value in self.values]
        if not all(labels) or len({label.lower() for label in labels}) < len(labels):
            labels = [f"v{number}" for number in range(1, len(labels) + 1)]
        short = _SHORT.get(dotted(self.path), self.path[-1])
        return [f"{short}{label}" if re.match(r"-?\d", label) else f"{short}_{label}" for label in labels]


def read_axes(grid: Any, index: FieldIndex) -> tuple[list[Axis], list[tuple[tuple[str, ...], str]]]:
    """The axes of a grid, and what is wrong with the rest of it as the path below `grid` and words.

    Args:
        grid: The value of a job file's `grid`.
        index: The fields of a job.
    """
    if not isinstance(grid, Mapping) or not grid:
        problem = f"{show(grid)} is not a grid; give at least one field with its values, such as lora.r: [8, 16]"
        return [], [((), problem)]
    axes: list[Axis] = []
    problems: list[tuple[tuple[str, ...], str]] = []
    for key, values in grid.items():
        problem = _axis_problem(key, values, index)
        if problem:
            problems.append(((str(key),), problem))
        else:
            axes.append(Axis(tuple(key.split(".")), values))
    return axes, problems


def _axis_problem(key: Any, values: Any, index: FieldIndex) -> str:
    path = tuple(str(key).split("."))
    if path not in index.leaves or ITEM in path:
        if fields := index.nodes.get(path, {}).get("properties"):
            return f"is a section; name its fields with a dot, such as {key}.{next(iter(fields))}: [...]"
        hint = unknown_field_hint(path if path[:-1] in index.nodes else (str(key),), index, "job")
        return f"is not a field of a job; {hint or 'give the dotted name of a field, such as lora.r'}"
    if key in NOT_IN_A_GRID:
        return "cannot vary in a grid; each combination gets its own from the one given outside the grid"
    if not isinstance(values, list) or not values:
        example = f"[{show(values)}]" if isinstance(values, str | int | float) else "[8, 16]"
        return f"{show(values)} is not a list of values; give at least one, such as {example}"
    seen: set[Hashable] = set()
    for value in values:
        same = (isinstance(value, bool), value if isinstance(value, Hashable) else repr(value))
        if same in seen:
            return f"{show(value)} is given twice; keep one"
        seen.add(same)
    return ""


def size(axes: Sequence[Axis]) -> int:
    """The number of combinations."""
    return math.prod(len(axis.values) for axis in axes)


def combinations(axes: Sequence[Axis], longest: int) -> Iterator[tuple[str, Settings]]:
    """Every combination in the order written: a suffix that no other has, and the settings.

    Args:
        axes: The axes; the last one varies fastest.
        longest: Most characters of a suffix; where one would be longer, all are numbers instead.
    """
    suffixes = ["-".join(labels) for labels in itertools.product(*(axis.labels() for axis in axes))]
    if max(map(len, suffixes)) > longest or len({suffix.lower() for suffix in suffixes}) < len(suffixes):
        digits = len(str(len(suffixes)))
        suffixes = [f"{number:0{digits}d}" for number in range(1, len(suffixes) + 1)]
    settings = itertools.product(*([(axis.path, value) for value in axis.values] for axis in axes))
    return zip(suffixes, settings, strict=True)


def _label(value: Any, is_path: bool) -> str:
    if value is None:
        text = "none"
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, list):
        text = ".".join(str(item).removesuffix("_proj") for item in value)
    else:
        text = str(value)
    if is_path:
        text = text.rstrip("/").rpartition("/")[2]
        text = re.sub(r"\.(jsonl?|csv|parquet)$", "", text)
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", text.replace("+", ""))
    text = text if isinstance(value, int | float) else text.strip("-._")
    return text if len(text) <= _LONGEST_LABEL else ""
