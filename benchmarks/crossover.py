"""From how many tokens per job on is a shared batch no faster than taking turns on the resident base model?

    python benchmarks/crossover.py             SmolLM2-135M-Instruct (after `make model`) and a tiny model
    python benchmarks/crossover.py --quick     the tiny model only

Processor seconds of one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from common import loray_loop, workload
from common.equal_steps import IN_TURN, TOGETHER, step_seconds
from rich.console import Console
from rich.table import Table
from speed_model import fitted

from gpu_actor.contract.report import StepSample

WORTH_IT = 0.10  # gain of a shared batch below which it is not
_JOBS = 4


@dataclass(frozen=True)
class Plan:
    """What is measured on one base model: tokens of a job's step, rounds, and steps of each job in a round."""

    tokens: tuple[int, ...]
    rounds: int
    steps: int


FULL = Plan((8, 32, 64, 128, 256, 512), rounds=3, steps=1)
TINY = Plan((8, 32, 128, 512, 2048), rounds=5, steps=8)  # whose fixed cost is most of a step
QUICK = Plan((8, 32, 128), rounds=2, steps=1)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Where a shared batch is no faster than taking turns.")
    parser.add_argument("--quick", action="store_true", help="only the tiny model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    arguments = parser.parse_args()
    workload.quiet()
    workload.set_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        bases = [("tiny", workload.tiny_base(Path(folder)), QUICK if arguments.quick else TINY)]
        if not arguments.quick:
            bases.append(("SmolLM2-135M-Instruct", workload.DEMO_BASE, FULL))
        for name, base, plan in bases:
            results.append({"base_model": name, **_measure(base, plan)})
            _print(results[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def _measure(base: str, plan: Plan) -> dict[str, Any]:
    model = loray_loop.load_loray(base)
    load = os.getloadavg()[0]
    step_seconds(model, 1, 16, 8, 1)  # warms up
    gains, samples = [], []
    for tokens in plan.tokens:
        pairs = []
        for number in range(plan.rounds):
            budgets = (TOGETHER, IN_TURN) if number % 2 else (IN_TURN, TOGETHER)
            spent = {budget: step_seconds(model, _JOBS, tokens, 8, plan.steps, budget) for budget in budgets}
            pairs.append(spent[IN_TURN] / spent[TOGETHER] - 1.0)
            samples.append(_sample(spent[TOGETHER], _JOBS * tokens, _JOBS))
            samples.append(_sample(spent[IN_TURN] / _JOBS, tokens, 1))
        gains.append(median(pairs))
    return {
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "gains": dict(zip(plan.tokens, gains, strict=True)),
        "crossover_tokens": crossover(plan.tokens, gains),
        "budget": fitted(samples)["saturation_tokens"],
    }


def crossover(tokens: Sequence[int], gains: Sequence[float]) -> float | None:
    """Where the gain falls below `WORTH_IT` for good, between two points on the scale of doublings.

    None: it is above at every point; the least number of tokens where it is below at every point.
    """
    above = [place for place, gain in enumerate(gains) if gain >= WORTH_IT]
    if not above:
        return float(tokens[0])
    if above[-1] == len(gains) - 1:
        return None
    last = above[-1]
    share = (gains[last] - WORTH_IT) / (gains[last] - gains[last + 1])
    return math.exp(math.log(tokens[last]) + share * math.log(tokens[last + 1] / tokens[last]))


def _sample(seconds: float, tokens: int, adapters: int) -> StepSample:
    return StepSample(tokens, squares=0, adapters=adapters, seconds=seconds, peak_bytes=0, adapter_bytes=0)


def _print(row: dict[str, Any]) -> None:
    console = Console(highlight=False)
    load = f"load {row['load_before']:.1f} before, {row['load_after']:.1f} after"
    table = Table(title=f"{row['base_model']}, fp32, 1 thread; {load}")
    table.add_column("what")
    table.add_column("ratio", justify="right")
    for tokens, gain in row["gains"].items():
        table.add_row(f"{_JOBS} jobs of {tokens} tokens: taking turns / shared batch", f"{1 + gain:.2f}")
    console.print(table)
    found = row["crossover_tokens"]
    where = "above all that were tried" if found is None else f"at {found:.0f}"
    console.print(
        f"a shared batch gains less than {WORTH_IT:.0%} from some tokens per job on: {where}; "
        f"the composer's budget by the same measurements: {row['budget']} tokens"
    )


if __name__ == "__main__":
    sys.exit(main())
