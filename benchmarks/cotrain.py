"""Co-training with Loray against PEFT and a plain training loop: speed and memory, measured in one run.

    python benchmarks/cotrain.py             SmolLM2-135M-Instruct, several minutes
    python benchmarks/cotrain.py --quick     a tiny random model, seconds: does the benchmark itself work?

README.md beside this file says how each number is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
import transformers
from common import measure, workload
from common.measure import Memory
from common.speed import SpeedRow, SpeedTest
from rich.console import Console
from rich.table import Table

LOSS_TOLERANCE = 1e-3
_MOST_OF_MEMORY = 0.9  # of what is free, that processes side by side may want


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        steps: Optimizer steps of every job.
        rounds: Times that both sides take their turns.
        job_counts: How many jobs Loray trains together, one row each.
        side_by_side: Numbers of PEFT processes that run at the same time, one row each.
        with_dropout: Jobs of the row with dropout.
    """

    steps: int
    rounds: int
    job_counts: tuple[int, ...]
    side_by_side: tuple[int, ...]
    with_dropout: int


FULL = Plan(steps=2, rounds=3, job_counts=(1, 2, 4, 8), side_by_side=(4, 8), with_dropout=4)
QUICK = Plan(steps=2, rounds=1, job_counts=(2,), side_by_side=(2,), with_dropout=2)


def main() -> int:
    """Measure, print, and say by the exit code whether both sides did equal work."""
    parser = argparse.ArgumentParser(description="Compare Loray's engine with PEFT and a plain training loop.")
    parser.add_argument("--quick", action="store_true", help="a tiny random model and 2 jobs; the numbers mean little")
    parser.add_argument("--base", help=f"base model, a folder or a hub id (default: {workload.DEMO_BASE})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    arguments = parser.parse_args()
    workload.quiet()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        base = arguments.base or (workload.tiny_base(Path(folder)) if arguments.quick else workload.DEMO_BASE)
        result = _measure(base, QUICK if arguments.quick else FULL, console)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if result["equal_work"]["ok"] else 1


def _measure(base: str, plan: Plan, console: Console) -> dict[str, Any]:
    threads = workload.set_threads()
    load = os.getloadavg()[0]
    machine = {
        "processor": workload.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_before": load,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    console.print(
        f"{base}, fp32, {machine['processor']}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    if load > 0.25 * threads:
        console.print(f"Other programs keep this machine busy (load {load:.1f}): take the speeds with care.")
    test = SpeedTest(base, plan.job_counts, plan.with_dropout, plan.steps)
    for stage in test.run(plan.rounds):
        console.print(f"speed: {stage}", style="dim")
    memory = _measure_memory(base, plan, threads, console)
    _print_speed(test.rows, plan, console)
    _print_memory(memory, console)
    equal = test.loss_difference <= LOSS_TOLERANCE
    console.print(
        f"Equal work: the losses of all optimizer steps differ by at most {test.loss_difference:.1e} "
        f"({'within' if equal else 'NOT WITHIN'} {LOSS_TOLERANCE:g})."
    )
    return {
        "base_model": base,
        "machine": machine,
        "steps": plan.steps,
        "rounds": plan.rounds,
        "speed": [row.to_dict() for row in test.rows],
        "memory": [row.to_dict() for row in memory],
        "memory_ratios": _memory_ratios(memory),
        "equal_work": {"largest_loss_difference": test.loss_difference, "tolerance": LOSS_TOLERANCE, "ok": equal},
    }


def _measure_memory(base: str, plan: Plan, threads: int, console: Console) -> list[Memory]:
    """Each measurement in processes of its own; processes side by side share the threads."""
    rows: list[Memory] = []

    def add(side: str, jobs: Sequence[Sequence[int]], each: int) -> None:
        console.print(f"memory: {side}, {sum(map(len, jobs))} jobs in {len(jobs)} processes", style="dim")
        rows.append(measure.measure(side, base, jobs, plan.steps, each))

    for count in plan.job_counts:
        add("loray", [range(count)], threads)
    add("peft", [[0]], threads)
    free = psutil.virtual_memory().available
    for count in plan.side_by_side:
        wanted = count * rows[-1].peak / rows[-1].processes
        if wanted > _MOST_OF_MEMORY * free:
            sizes = f"{wanted / 2**30:.0f} GiB, and {free / 2**30:.0f} GiB are free"
            console.print(f"left out: {count} PEFT processes side by side, which want some {sizes}")
            continue
        add("peft", [[number] for number in range(count)], max(1, threads // count))
    return rows


def _memory_ratios(rows: Sequence[Memory]) -> dict[int, float]:
    """Loray's one process against as many PEFT processes as it has jobs, by their number."""
    together = {row.jobs: row.peak for row in rows if row.side == "loray"}
    return {row.jobs: together[row.jobs] / row.peak for row in rows if row.side == "peft" and row.processes > 1}


def _print_speed(rows: Sequence[SpeedRow], plan: Plan, console: Console) -> None:
    table = Table(title=f"Real (unpadded) training tokens per second; median of {plan.rounds} rounds")
    for heading in ("jobs", "dropout", "padding in PEFT's batches", "PEFT", "Loray", "Loray / PEFT", "min .. max"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row.jobs),
            f"{row.dropout:g}",
            f"{row.padding:.0%}",
            f"{median(row.peft):.0f}",
            f"{median(row.loray):.0f}",
            f"{median(row.ratios):.2f}",
            f"{min(row.ratios):.2f} .. {max(row.ratios):.2f}",
        )
    console.print(table)
    console.print("PEFT trains the jobs one after another, Loray together.")


def _print_memory(rows: Sequence[Memory], console: Console) -> None:
    table = Table(title="Peak memory in MiB")
    for heading in ("side", "jobs", "processes", "peak", "sum of resident sets"):
        table.add_column(heading, justify="left" if heading == "side" else "right")
    for row in rows:
        name = "Loray" if row.side == "loray" else "PEFT"
        table.add_row(name, str(row.jobs), str(row.processes), f"{row.peak / 2**20:.0f}", f"{row.resident / 2**20:.0f}")
    console.print(table)
    console.print(
        "peak: anonymous memory of all processes at one moment, mapped files (libraries, weights) counted once."
    )
    for count, ratio in _memory_ratios(rows).items():
        console.print(f"Loray with {count} jobs / {count} PEFT processes: {ratio:.2f}")


if __name__ == "__main__":
    sys.exit(main())
