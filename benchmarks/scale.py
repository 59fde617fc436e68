"""What one more adapter, one more of rank, and one more token cost: time of a step, and kernels, as slopes.

    python benchmarks/scale.py             SmolLM2-135M-Instruct (after `make model`) and a tiny model
    python benchmarks/scale.py --quick     the tiny model, and fewer points

Time is processor seconds of one thread. Kernels are counted on a CPU as in `count_kernels.py`: one product for all
adapters, of a layer, outside attention.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import loray_loop, workload
from common.equal_steps import step_seconds
from count_kernels import OPERATORS, loray_step, row_of
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Setting:
    """A step: how many adapters, of what rank, and how many tokens all of them have together."""

    adapters: int
    rank: int
    tokens: int


@dataclass(frozen=True)
class Plan:
    """What is measured on one base model: a setting, and for each of its fields the values that it takes in turn."""

    middle: Setting
    axes: dict[str, tuple[int, ...]]
    rounds: int


FULL = Plan(
    Setting(4, 8, 128), {"adapters": (1, 4, 16, 64), "rank": (8, 16, 64), "tokens": (32, 64, 128, 256)}, rounds=3
)
TINY = Plan(Setting(4, 8, 512), {"adapters": (1, 4, 16, 64), "rank": (8, 16, 64), "tokens": (128, 512, 2048)}, rounds=3)
QUICK = Plan(Setting(2, 8, 64), {"adapters": (1, 8), "rank": (8, 64), "tokens": (32, 256)}, rounds=1)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What one more adapter, one more of rank, one more token cost.")
    parser.add_argument("--quick", action="store_true", help="only the tiny model, and fewer points")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    arguments = parser.parse_args()
    workload.quiet()
    workload.set_threads(1)
    kernels = {axis: _kernels(axis, values) for axis, values in (QUICK if arguments.quick else FULL).axes.items()}
    results = []
    with tempfile.TemporaryDirectory() as folder:
        bases = [("tiny", workload.tiny_base(Path(folder)), QUICK if arguments.quick else TINY)]
        if not arguments.quick:
            bases.append(("SmolLM2-135M-Instruct", workload.DEMO_BASE, FULL))
        for name, base, plan in bases:
            results.append({"base_model": name, **_measure(base, plan, kernels)})
            _print(results[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def _measure(base: str, plan: Plan, kernels: dict[str, float]) -> dict[str, Any]:
    """Every setting once per round, so that what else the machine does meets all of them."""
    model = loray_loop.load_loray(base)
    load = os.getloadavg()[0]
    step_seconds(model, 1, 16, 8, 1)  # warms up
    settings = {axis: [replace(plan.middle, **{axis: value}) for value in values] for axis, values in plan.axes.items()}
    found: dict[Setting, list[float]] = {plan.middle: []} | {one: [] for points in settings.values() for one in points}
    for _ in range(plan.rounds):
        for one, seconds in found.items():
            seconds.append(step_seconds(model, one.adapters, max(2, one.tokens // one.adapters), one.rank, 2))
    rows = []
    for axis, values in plan.axes.items():
        seconds = [median(found[one]) for one in settings[axis]]
        slope = _slope(values, seconds)
        rows.append(
            {
                "axis": axis,
                "values": list(values),
                "seconds": seconds,
                "slope": slope,
                "of_a_step": slope / median(found[plan.middle]),
                "kernels": kernels[axis],
            }
        )
    return {"load_before": load, "load_after": os.getloadavg()[0], "middle": vars(plan.middle), "rows": rows}


def _kernels(axis: str, values: Sequence[int]) -> float:
    """Kernels of a layer outside attention that one more costs, from the least value to the largest."""
    least, most = min(values), max(values)
    counts = []
    for value in (least, most):
        setting: dict[str, int] = {"jobs": 4, "samples": 1, "rank": 16, "length": 16}
        setting[{"adapters": "jobs", "rank": "rank", "tokens": "length"}[axis]] = value
        products = OPERATORS["one product for all"]
        row = row_of(axis, "", partial(loray_step, dropout=0.0, products=products, **setting))
        counts.append(row.layer - row.attention)
    return (counts[1] - counts[0]) / (most - least)


def _slope(values: Sequence[int], seconds: Sequence[float]) -> float:
    """Seconds that one more costs: least squares of a line."""
    return float(np.polyfit(values, seconds, 1)[0])


def _print(result: dict[str, Any]) -> None:
    middle = result["middle"]
    table = Table(
        title=f"{result['base_model']}, fp32, 1 thread; a step of {middle['tokens']} tokens, {middle['adapters']} "
        f"adapters of rank {middle['rank']}; load {result['load_before']:.1f} before, {result['load_after']:.1f} after"
    )
    for heading in ("one more of", "values", "ms of their steps", "ms more", "of a step", "kernels more"):
        table.add_column(heading, justify="left" if heading == "one more of" else "right")
    for row in result["rows"]:
        table.add_row(
            row["axis"],
            ", ".join(map(str, row["values"])),
            ", ".join(f"{1e3 * seconds:.0f}" for seconds in row["seconds"]),
            f"{1e3 * row['slope']:.3f}",
            f"{row['of_a_step']:.2%}",
            f"{row['kernels']:.1f}",
        )
    Console(highlight=False, width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
