"""Loray against what else trains LoRA adapters: the same jobs, each peer in an environment of its own.

    python benchmarks/peers.py             SmolLM2-135M-Instruct (after `make model`), half an hour
    python benchmarks/peers.py --quick     a tiny random model, and only the peers that are installed here

The first run makes the environments, which takes minutes as well. README.md beside this file says what is measured,
and what a peer had to be told.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import workload
from peers_parts.environments import EnvironmentFailed, default_folder, interpreter, is_here
from peers_parts.rows import Row, Sum, sum_together, sums
from peers_parts.runs import Side, SideFailed, Task, memory_at_once, train, write_task
from peers_parts.table import print_memory, print_rows
from rich.console import Console

from gpu_actor.contract.errors import BaseModelError

LORAY = Side("Loray", "with_loray.py", "loray", together=True)
PEERS = {
    "trainer": Side("PEFT + Trainer", "with_trainer.py", "trainer", "padded"),
    "flattening": Side(
        "PEFT + Trainer, flattening collator", "with_trainer.py", "trainer", "flattening", pads_nothing=True
    ),
    "padding-free": Side("TRL SFTTrainer, padding_free", "with_trl.py", "trl", "padding_free", pads_nothing=True),
    "packing": Side("TRL SFTTrainer, packing", "with_trl.py", "trl", "packing", pads_nothing=True, same_steps=False),
    "m-lora": Side("m-LoRA", "with_mlora.py", "m-lora", "published", together=True),
    "m-lora-kept": Side("m-LoRA, activations kept", "with_mlora.py", "m-lora", "kept", together=True),
}


@dataclass(frozen=True)
class Plan:
    """How much is measured: optimizer steps of a job, numbers of jobs, kinds of lengths, and processes at once."""

    steps: int
    counts: tuple[int, ...]
    lengths: tuple[str, ...]
    at_once: int


FULL = Plan(steps=2, counts=(1, 4, 8), lengths=("mixed", "equal"), at_once=4)
QUICK = Plan(steps=2, counts=(2,), lengths=("mixed",), at_once=2)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Compare Loray with its peers on the same jobs.")
    parser.add_argument("--quick", action="store_true", help="a tiny random model, and only the peers installed here")
    parser.add_argument("--only", nargs="+", choices=PEERS, help="some of the peers")
    parser.add_argument("--lengths", nargs="+", choices=FULL.lengths, help="lengths of the samples (default: both)")
    parser.add_argument(
        "--jobs", nargs="+", type=int, choices=range(1, 9), help="numbers of jobs, at most 8 (default: 1 4 8)"
    )
    parser.add_argument("--rounds", type=int, default=1, help="times that all take their turns (default: 1)")
    parser.add_argument("--no-memory", action="store_true", help="do not measure processes at the same time")
    parser.add_argument("--envs", type=Path, default=default_folder(), help="where the environments are (%(default)s)")
    parser.add_argument("--base", help=f"base model, a folder or a hub id (default: {workload.DEMO_BASE})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    arguments = parser.parse_args()
    workload.quiet()
    console = Console(highlight=False, width=120)
    try:
        result = _measure(arguments, console)
    except (BaseModelError, EnvironmentFailed, SideFailed) as error:
        console.print(str(error), markup=False)
        return 2
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _measure(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    plan = QUICK if arguments.quick else FULL
    counts = sorted(set(arguments.jobs or plan.counts))
    threads = workload.set_threads()
    peers = [PEERS[name] for name in arguments.only or PEERS]
    if arguments.quick:
        for peer in (peer for peer in peers if not is_here(peer.environment)):
            console.print(f"left out, as its packages are not installed here: {peer.name}")
        peers = [peer for peer in peers if is_here(peer.environment)]
    pythons = {
        side.environment: sys.executable if arguments.quick else str(interpreter(side.environment, arguments.envs))
        for side in peers
    } | {LORAY.environment: sys.executable}
    load = os.getloadavg()[0]
    rows: list[Row] = []
    at_once: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = arguments.base or (workload.tiny_base(Path(folder)) if arguments.quick else workload.DEMO_BASE)
        for lengths in arguments.lengths or plan.lengths:
            equal = lengths == "equal"
            task = write_task(Path(folder, lengths), base, counts[-1], plan.steps, threads, equal=equal)
            console.print(f"{lengths} lengths, {task.padding:.0%} padding in a job's own batches", style="dim")
            new = [
                Row(lengths, peer.name, peer.pads_nothing, peer.same_steps, count) for peer in peers for count in counts
            ]
            for number in range(arguments.rounds):
                _one_round(new, [LORAY, *peers][:: -1 if number % 2 else 1], pythons, task, console)
            rows += new
            if not arguments.no_memory and not at_once and plan.at_once in counts:
                for side in (side for side in peers if not side.together):
                    console.print(f"{plan.at_once} processes at once: {side.name}", style="dim")
                    python = pythons[side.environment]
                    at_once[side.name] = memory_at_once(side, python, task, plan.at_once, threads)
    result = {
        "base_model": base,
        "threads": threads,
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "rows": [row.to_dict() for row in rows],
        "processes_at_once": plan.at_once,
        "memory_at_once": at_once,
    }
    print_rows(rows, result, console)
    print_memory(rows, at_once, plan.at_once, console)
    return result


def _one_round(
    rows: Sequence[Row], sides: Sequence[Side], pythons: Mapping[str, str], task: Task, out: Console
) -> None:
    """Everybody's turn."""
    counts = sorted({row.jobs for row in rows})
    found: dict[str, dict[int, Sum | SideFailed]] = {}
    for side in sides:
        out.print(f"training: {side.name}", style="dim")
        found[side.name] = _trained(side, pythons[side.environment], task, counts)
        for count, done in found[side.name].items():
            told = done.reason if isinstance(done, SideFailed) else f"{done.rate:.0f} tokens/s"
            out.print(f"    {count} jobs: {told}", style="dim", markup=False)
    for row in rows:
        row.add(found[row.peer][row.jobs], found[LORAY.name][row.jobs])


def _trained(side: Side, python: str, task: Task, counts: Sequence[int]) -> dict[int, Sum | SideFailed]:
    """What a side needed for each number of jobs; what a peer cannot do is a row as well.

    Raises:
        SideFailed: Loray's own did.
    """
    found: dict[int, Sum | SideFailed] = {}
    for count in counts if side.together else counts[-1:]:
        try:
            pieces = train(side, python, task, count)
        except SideFailed as error:
            if side is LORAY:
                raise  # there is nothing to compare with
            return {**dict.fromkeys(counts, error), **found}  # more jobs take more of whatever it lacks
        if side.together:
            found[count] = sum_together(pieces[0], task.tokens)
        else:
            found.update(sums(pieces, task.tokens, counts))
    return found


if __name__ == "__main__":
    sys.exit(main())
