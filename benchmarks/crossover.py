"""From how many tokens per job on is a shared batch no faster than taking turns on the resident base model?

    python benchmarks/crossover.py             SmolLM2-135M-Instruct (after `make model`) and a tiny model
    python benchmarks/crossover.py --quick     the tiny model only

Also what a step takes by the number of adapters and by their rank. Processor seconds of one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import loray_loop, workload
from rich.console import Console
from rich.table import Table
from speed_model import fitted

from gpu_actor.contract.config import AdapterSpec, DatasetConfig, TrainingConfig
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.contract.report import StepSample
from gpu_actor.model.base_model import BaseModel
from gpu_actor.training.trainer import CoTrainer

WORTH_IT = 0.10  # gain of a shared batch below which it is not
_JOBS = 4
_TOGETHER, _IN_TURN = 1_000_000, 1  # token budgets: everything fits, nothing fits beside another


@dataclass(frozen=True)
class Plan:
    """What is measured on one base model: tokens of a job's step, numbers of adapters and ranks, and rounds."""

    tokens: tuple[int, ...]
    adapters: tuple[int, ...]
    ranks: tuple[int, ...]
    rounds: int


FULL = Plan((8, 16, 32, 64, 128), (1, 4, 16, 64), (4, 16, 64), rounds=3)
TINY = Plan((8, 32, 128, 512, 2048), (1, 4, 16, 64), (4, 16, 64), rounds=3)  # whose fixed cost is most of a step
QUICK = Plan((8, 32, 128), (1, 8), (4, 64), rounds=2)


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
    _step_seconds(model, 1, 16, 8, _TOGETHER, 1)  # warms up
    gains, samples = [], []
    for tokens in plan.tokens:
        pairs = []
        for number in range(plan.rounds):
            budgets = (_TOGETHER, _IN_TURN) if number % 2 else (_IN_TURN, _TOGETHER)
            spent = {budget: _step_seconds(model, _JOBS, tokens, 8, budget, 1) for budget in budgets}
            pairs.append(spent[_IN_TURN] / spent[_TOGETHER] - 1.0)
            samples.append(_sample(spent[_TOGETHER], _JOBS * tokens, _JOBS))
            samples.append(_sample(spent[_IN_TURN] / _JOBS, tokens, 1))
        gains.append(median(pairs))
    whole = plan.tokens[-1]  # tokens of a step, whoever they belong to
    adapters = [_step_seconds(model, n, max(1, whole // n), 8, _TOGETHER, plan.rounds) for n in plan.adapters]
    ranks = [_step_seconds(model, _JOBS, whole // _JOBS, r, _TOGETHER, plan.rounds) for r in plan.ranks]
    return {
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "gains": dict(zip(plan.tokens, gains, strict=True)),
        "crossover_tokens": crossover(plan.tokens, gains),
        "budget": fitted(samples)["saturation_tokens"],
        "step_tokens": whole,
        "by_adapters": {n: spent / adapters[0] for n, spent in zip(plan.adapters, adapters, strict=True)},
        "by_rank": {r: spent / ranks[0] for r, spent in zip(plan.ranks, ranks, strict=True)},
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


def _step_seconds(model: BaseModel, jobs: int, tokens: int, rank: int, budget: int, rounds: int) -> float:
    """Processor seconds in which every job makes one optimizer step of one sample; the second and later steps."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = CoTrainer(model, budget)
        for number in range(jobs):
            trainer.attach(loray_loop.make_tenant(model, _job(Path(folder), model, number, tokens, rank, rounds + 2)))
        shared = jobs if budget == _IN_TURN else 1  # shared batches until everyone has made a step
        for _ in range(shared):
            trainer.step()
        found = []
        for _ in range(rounds):
            started = time.process_time()
            for _ in range(shared):
                trainer.step()
            found.append(time.process_time() - started)
    return median(found)


def _job(folder: Path, model: BaseModel, number: int, tokens: int, rank: int, steps: int) -> workload.Job:
    random = np.random.default_rng(number)
    path = folder / f"data-{number}.jsonl"
    rows = [random.integers(3, model.description.vocab_size, tokens).tolist() for _ in range(steps)]
    path.write_text("".join(json.dumps({"input_ids": row, "labels": row}) + "\n" for row in rows))
    spec = AdapterSpec(
        job_id=f"job-{number}",
        name=f"job-{number}",
        base_model="base",
        dataset=DatasetConfig(path=str(path), format="tokens"),
        lora=LoraConfig(r=rank, target_modules="all-linear"),
        training=TrainingConfig(max_steps=steps, per_device_train_batch_size=1, cutoff_len=max(tokens, 16)),
        output_dir=str(folder / f"out-{number}"),
    )
    return workload.Job(spec, [])


def _print(row: dict[str, Any]) -> None:
    console = Console(highlight=False)
    load = f"load {row['load_before']:.1f} before, {row['load_after']:.1f} after"
    table = Table(title=f"{row['base_model']}, fp32, 1 thread; {load}")
    table.add_column("what")
    table.add_column("ratio", justify="right")
    for tokens, gain in row["gains"].items():
        table.add_row(f"{_JOBS} jobs of {tokens} tokens: taking turns / shared batch", f"{1 + gain:.2f}")
    for number, ratio in row["by_adapters"].items():
        table.add_row(f"a step of {row['step_tokens']} tokens, {number} adapters / 1 adapter", f"{ratio:.2f}")
    first = next(iter(row["by_rank"]))
    for rank, ratio in row["by_rank"].items():
        table.add_row(
            f"a step of {row['step_tokens']} tokens, {_JOBS} adapters of rank {rank} / {first}", f"{ratio:.2f}"
        )
    console.print(table)
    found = row["crossover_tokens"]
    where = "above all that were tried" if found is None else f"at {found:.0f}"
    console.print(
        f"a shared batch gains less than {WORTH_IT:.0%} from some tokens per job on: {where}; "
        f"the composer's budget by the same measurements: {row['budget']} tokens"
    )


if __name__ == "__main__":
    sys.exit(main())
