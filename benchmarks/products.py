"""Products with frozen weights on a CPU: torch's own, which are MKL's, and oneDNN's, forward and backward.

    python benchmarks/products.py [--rounds N] [--quick]

The shapes are those of SmolLM2-135M's linear layers and of its head, in fp32, on one thread, with as many rows as one
job has in a shared batch. Both take turns; what counts is the processor time of the thread, by medians.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from common import workload  # first: it makes this folder's parent importable

import torch  # isort: skip
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

_LAYERS = 30
_ROWS = (32, 70, 150, 320)
_OPERATIONS = 2e8  # multiplications of one measurement, at least
Product = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """Linear layers of one shape: what they are, inputs, outputs, and how many a model has."""

    what: str
    inputs: int
    outputs: int
    count: int


_SHAPES = (
    Shape("query, output", 576, 576, 2 * _LAYERS),
    Shape("key, value", 576, 192, 2 * _LAYERS),
    Shape("gate, up", 576, 1536, 2 * _LAYERS),
    Shape("down", 1536, 576, _LAYERS),
    Shape("head", 576, 49152, 1),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time products with frozen weights, by MKL and by oneDNN.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="one round, few rows, no head")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    arguments = parser.parse_args()
    workload.quiet()
    torch.set_num_threads(1)
    rounds, shapes, all_rows = (1, _SHAPES[:-1], _ROWS[:1]) if arguments.quick else (arguments.rounds, _SHAPES, _ROWS)
    table = Table(title=f"products of one thread, {_processor()}, load {os.getloadavg()[0]:.1f}")
    for heading in ("rows", "layers", "forward, MKL over oneDNN", "backward"):
        table.add_column(heading, justify="left" if heading == "layers" else "right")
    results, wholes = [], []
    for rows in all_rows:
        spent = {"forward": [0.0, 0.0], "backward": [0.0, 0.0]}
        for shape in shapes:
            found = _measured(shape, rows, rounds)
            for way, times in found.items():
                spent[way] = [whole + shape.count * seconds for whole, seconds in zip(spent[way], times, strict=True)]
            ratios = {way: mkl / onednn for way, (mkl, onednn) in found.items()}
            results.append({"rows": rows, "what": shape.what, **ratios})
            table.add_row(str(rows), shape.what, *(f"{ratio:.2f}" for ratio in ratios.values()))
        ratios = {way: mkl / onednn for way, (mkl, onednn) in spent.items()}
        wholes.append({"rows": rows, **ratios})
        table.add_row(str(rows), "all of a model", *(f"{ratio:.2f}" for ratio in ratios.values()), style="bold")
        table.add_section()
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({"shapes": results, "models": wholes}, indent=2), encoding="utf-8")


def _measured(shape: Shape, rows: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds of MKL and of oneDNN (medians), by way."""
    weight = torch.randn(shape.outputs, shape.inputs)
    onednn = torch.ops.mkldnn._linear_pointwise
    pairs: dict[str, tuple[torch.Tensor, Product, Product]] = {
        "forward": (
            torch.randn(rows, shape.inputs),
            lambda x: F.linear(x, weight),
            lambda x: onednn(x, weight, None, "none", [], ""),
        ),
        "backward": (
            torch.randn(rows, shape.outputs),
            lambda gradient: gradient @ weight,
            lambda gradient: onednn(gradient, weight.t(), None, "none", [], ""),
        ),
    }
    repeats = max(1, round(_OPERATIONS / (rows * shape.inputs * shape.outputs)))
    return {way: _in_turn(given, (ours, other), repeats, rounds) for way, (given, ours, other) in pairs.items()}


def _in_turn(given: torch.Tensor, products: tuple[Product, Product], repeats: int, rounds: int) -> tuple[float, float]:
    """Median seconds of each; who begins changes from round to round."""
    spent: tuple[list[float], list[float]] = ([], [])
    for number in range(-1, rounds):
        for place in (0, 1) if number % 2 else (1, 0):
            started = time.thread_time()
            for _ in range(repeats):
                products[place](given)
            if number >= 0:  # else it was the warm-up
                spent[place].append((time.thread_time() - started) / repeats)
    return median(spent[0]), median(spent[1])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "some processor")


if __name__ == "__main__":
    main()
