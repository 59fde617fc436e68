"""How long a shared step takes on this machine: T = a + b * tokens + c * adapters, fitted to measured steps.

    python benchmarks/speed_model.py             SmolLM2-135M-Instruct (after `make model`) and a tiny model
    python benchmarks/speed_model.py --quick     the tiny model only

The saturation point is the batch at which the fixed cost is down to a tenth of the step: more tokens gain little.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import workload
from common.step_fit import fit
from rich.console import Console
from rich.table import Table

from gpu_actor.contract.report import StepSample
from gpu_actor.model.base_model import BaseModel
from gpu_actor.training.trainer import CoTrainer
from orchestrator.scheduler.estimate import saturation_tokens
from orchestrator.scheduler.view import SpeedModel

_JOBS = (1, 2, 4, 8)
_BUDGETS = (256, 512, 1024)


def main() -> int:
    """Measure, fit and print."""
    parser = argparse.ArgumentParser(description="Fit the speed model of shared steps.")
    parser.add_argument("--quick", action="store_true", help="only the tiny model")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps of each job in each setting")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    arguments = parser.parse_args()
    workload.quiet()
    threads = workload.set_threads()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bases = [("tiny (64 wide, 2 layers)", workload.tiny_base(Path(folder)))]
        if not arguments.quick:
            bases.append(("SmolLM2-135M-Instruct", workload.DEMO_BASE))
        for name, base in bases:
            rows.append({"base_model": name, **fitted(measure(base, arguments.steps))})
    table = Table(title=f"T = a + b tokens + c adapters; {threads} threads, fp32, load {os.getloadavg()[0]:.1f}")
    for heading in ("base model", "steps", "a ms", "b us/token", "c ms", "mean error", "saturation tokens"):
        table.add_column(heading, justify="left" if heading == "base model" else "right")
    for row in rows:
        table.add_row(
            row["base_model"],
            str(row["steps"]),
            f"{1e3 * row['a']:.1f}",
            f"{1e6 * row['b']:.0f}",
            f"{1e3 * row['c']:.2f}",
            f"{row['mean_error']:.1%}",
            str(row["saturation_tokens"]),
        )
    Console(highlight=False).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(base: str, steps: int) -> list[StepSample]:
    """Shared steps of different numbers of adapters and tokens."""
    from common import loray_loop

    model: BaseModel = loray_loop.load_loray(base)
    samples: list[StepSample] = []
    for count in _JOBS:
        for budget in _BUDGETS:
            with tempfile.TemporaryDirectory() as folder:
                jobs = workload.make_jobs(Path(folder), model.description.vocab_size, range(count), steps + 1)
                trainer = CoTrainer(model, budget)
                for job in jobs:
                    trainer.attach(loray_loop.make_tenant(model, job))
                while not trainer.idle:
                    trainer.step()
                    samples += trainer.meter.take()
    return samples


def fitted(samples: list[StepSample]) -> dict[str, Any]:
    """The coefficients of a step, their error, and where a batch saturates the device."""
    a, b, c, error = fit(samples)
    return {
        "steps": len(samples),
        "a": a,
        "b": b,
        "c": c,
        "mean_error": error,
        "saturation_tokens": saturation_tokens(SpeedModel(a, b, c)),
    }


if __name__ == "__main__":
    sys.exit(main())
