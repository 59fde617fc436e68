"""Of what Loray computes, how much is matrix products; and the same jobs with PEFT, in turn.

    python benchmarks/roofline.py             SmolLM2-135M-Instruct (after `make model`), a few minutes
    python benchmarks/roofline.py --quick     a tiny random model, seconds: does the benchmark itself work?

Processor seconds of one thread: other programs on the machine change them little. README.md beside this file says more.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import loray_loop, peft_loop, workload
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = frozenset({"mm", "addmm", "addmm_", "bmm", "baddbmm", "matmul", "linear"})
_ATTENTION = "scaled_dot_product"
KINDS = ("matrix products", "attention", "all else")


class Spent(TorchDispatchMode):
    """Adds up the processor seconds of matrix products and of attention, as they are made on a CPU.

    Attributes:
        seconds: By kind of operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        kind = KINDS[0] if name in _PRODUCTS else KINDS[1] if _ATTENTION in name else None
        if kind is None:
            return func(*args, **(kwargs or {}))
        started = time.process_time()
        out = func(*args, **(kwargs or {}))
        self.seconds[kind] += time.process_time() - started  # type: ignore[assignment]
        return out


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The share of matrix products in a step, and the ratio to PEFT.")
    parser.add_argument("--quick", action="store_true", help="a tiny random model; the numbers mean little")
    parser.add_argument("--jobs", type=int, default=4, help="jobs trained together (at most 8)")
    parser.add_argument("--rounds", type=int, help="times that all sides take their turns")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    arguments = parser.parse_args()
    workload.quiet()
    workload.set_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        base = workload.tiny_base(Path(folder)) if arguments.quick else workload.DEMO_BASE
        rounds = _measure(base, arguments.jobs, arguments.rounds or (1 if arguments.quick else 3))
    result = {"load_before": load, "load_after": os.getloadavg()[0], "jobs": arguments.jobs, **_summary(rounds)}
    _print(result, base)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _measure(base: str, count: int, rounds: int) -> list[dict[str, float]]:
    """Processor seconds of both sides, and of Loray's operations, in each round; one more before is the warm-up."""
    ours, theirs = loray_loop.load_loray(base), peft_loop.load_plain(base)
    vocabulary = ours.description.vocab_size
    found = []
    for number in range(rounds + 1):
        jobs = 1 if number == 0 else count
        if number % 2:
            found.append(_loray(ours, jobs) | _peft(theirs, vocabulary, jobs))
        else:
            found.append(_peft(theirs, vocabulary, jobs) | _loray(ours, jobs))
    return found[1:]


def _loray(model: Any, count: int) -> dict[str, float]:
    """The jobs as they are trained, and once more with a look at each operation."""
    with tempfile.TemporaryDirectory() as folder:
        plain, watched = (
            workload.make_jobs(Path(folder, name), model.description.vocab_size, range(count), 2)
            for name in ("plain", "watched")
        )
        started = time.process_time()
        loray_loop.co_train(model, plain)
        whole = time.process_time() - started
        with Spent() as spent:
            loray_loop.co_train(model, watched)
    return {"loray": whole, **{kind: spent.seconds[kind] for kind in KINDS[:2]}}


def _peft(model: Any, vocabulary: int, count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        jobs = workload.make_jobs(Path(folder), vocabulary, range(count), 2)
        started = time.process_time()
        for job in jobs:
            peft_loop.train_alone(model, job)
        return {"peft": time.process_time() - started}


def _summary(rounds: Sequence[dict[str, float]]) -> dict[str, Any]:
    shares = {kind: median(one[kind] / one["loray"] for one in rounds) for kind in KINDS[:2]}
    ratios = [one["peft"] / one["loray"] for one in rounds]
    return {
        "rounds": list(rounds),
        "shares": {**shares, KINDS[2]: 1.0 - sum(shares.values())},
        "speed_over_peft": median(ratios),
        "speed_over_peft_range": [min(ratios), max(ratios)],
    }


def _print(result: dict[str, Any], base: str) -> None:
    console = Console(highlight=False)
    load = f"load {result['load_before']:.1f} before, {result['load_after']:.1f} after"
    table = Table(title=f"{base}, {result['jobs']} jobs, fp32, 1 thread, torch {torch.__version__}; {load}")
    table.add_column("of Loray's processor seconds")
    table.add_column("share", justify="right")
    for kind, share in result["shares"].items():
        table.add_row(kind, f"{share:.1%}")
    console.print(table)
    least, most = result["speed_over_peft_range"]
    console.print(f"PEFT's processor seconds / Loray's: {result['speed_over_peft']:.2f} ({least:.2f} .. {most:.2f})")


if __name__ == "__main__":
    sys.exit(main())
