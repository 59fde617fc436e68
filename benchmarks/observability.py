"""Watching is what it was promised to be, and costs nothing that counts: eight jobs, all trackers, every window open.

    python benchmarks/observability.py            SmolLM2-135M-Instruct (after `make model`), three quarters of an hour
    python benchmarks/observability.py --quick    a tiny random model: what was promised; the cost means little

Trackers and Prometheus take part as far as they are installed. Exits with 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parent.parent))  # for the processes of Ray
os.environ.setdefault("OMP_NUM_THREADS", "1")

from common import workload
from observability_parts import cost, promises, show
from observability_parts.served import served, wait_until
from rich.console import Console
from rich.table import Table

from gpu_actor.paths.locations import resolve_base_model
from support.prometheus import PROMETHEUS, prometheus
from support.talking import VOCABULARY, save_talking_base

_MOST_COST = 0.01  # of the throughput
_FEWEST = 20  # units of four turns, from which on twice the standard error means what it says


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description="What was promised of watching, and what it costs.")
    parser.add_argument("--quick", action="store_true", help="a tiny random model; the cost is not judged")
    parser.add_argument("--steps", type=int, help="optimizer steps of each of the eight jobs")
    parser.add_argument("--cost-steps", type=int, help="of each job of the measurement of the cost")
    parser.add_argument("--rounds", type=int, help="times that these jobs are trained")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    arguments = parser.parse_args()
    workload.quiet()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended
    # a script's background job would ignore it, and so would `loray top`, which is ended by it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="lw", dir="/tmp", ignore_cleanup_errors=True) as name:
        found, price, base = _run(Path(name), arguments)
    if not arguments.quick:
        found += _judged(price)
    _print(found, price, f"{base}; load {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    if arguments.json:
        document = {"promises": [asdict(one) for one in found], "cost": asdict(price), "load_before": load}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 1 if any(one.kept is False for one in found) else 0


def _run(folder: Path, arguments: argparse.Namespace) -> tuple[list[promises.Promise], cost.Cost, str]:
    quick = arguments.quick
    tiny = [folder / name for name in ("tiny-one", "tiny-two")]
    for place in tiny:
        save_talking_base(place)
    base, vocabulary = (str(tiny[0]), VOCABULARY) if quick else (resolve_base_model(workload.DEMO_BASE), 49152)
    steps = arguments.steps or (2000 if quick else 60)
    logging = 20 if quick else 1  # a tiny model would make hundreds of rows a second
    rounds, cost_steps = arguments.rounds or (1 if quick else 2), arguments.cost_steps or (1400 if quick else 120)
    with served(folder, base) as one:
        # gone before the cost is measured: it scrapes every second, whoever watches
        with _server(folder, one.discovery) if PROMETHEUS else contextlib.nullcontext() as server:
            seen = show.show(one, show.make_jobs(folder, base, str(tiny[1]), steps, logging), _tell)
            wait_until(promises.until_metrics_are_told(one, server), "metrics", 1.0)
            found = list(promises.promises(one, seen, server))
        price = cost.measure(one, base, vocabulary, cost_steps, rounds, logging, _tell)
        found.append(promises.Promise("loray serve ends in order", one.stop() == 0, "SIGTERM"))
    return found, price, Path(base).name


@contextlib.contextmanager
def _server(folder: Path, discovery: Path) -> Any:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with prometheus(folder, discovery, port) as server:
        yield server


def _tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


def _judged(price: cost.Cost) -> list[promises.Promise]:
    return [
        _below(f"all of it costs less than {_MOST_COST:.0%} of the throughput", cost.share_lost(price.rates), price),
        _below("... and of the processor seconds of the steps' thread", cost.share_lost(price.threads), price),
        # what other processes cost that thread in time, by the kernel's own count
        _below("... and of its time, for want of a core", cost.mean_and_error(price.waits), price),
        _of_the_cores(price),
        promises.Promise("... and no loss is another", price.equal, "the same to the bit" if price.equal else "NOT"),
    ]


def _below(what: str, lost: tuple[float, float], price: cost.Cost) -> promises.Promise:
    """Whether a cost, and twice its standard error, is as low as promised; on a busy machine that may not be told."""
    share, error = lost
    figure = f"{share:+.2%}, give or take {error:.2%} (twice the standard error; {len(price.rates)} units)"
    below, above = share + error < _MOST_COST, share - error >= _MOST_COST
    if len(price.rates) < _FEWEST or not (below or above):  # nor where the kernel does not count it
        return promises.Promise(what, None, f"not told: {figure}")
    return promises.Promise(what, below, figure)


def _of_the_cores(price: cost.Cost) -> promises.Promise:
    """What is taken of the machine: all of it is missing to an actor that uses every core."""
    taken, cores = sum(price.beside.values()), os.cpu_count() or 1
    figure = f"{taken:.3f} of a core, {taken / cores:.2%} of {cores}"
    below = taken / cores < _MOST_COST if price.rates else None
    return promises.Promise("... and of the processor seconds of all cores", below, figure)


def _print(found: list[promises.Promise], price: cost.Cost, title: str) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    table = Table(title=title)
    for heading in ("promised", "seen", "figure"):
        table.add_column(heading, overflow="fold")
    for one in found:
        table.add_row(one.what, {True: "yes", False: "NO", None: "-"}[one.kept], one.figure)
    console.print(table)
    for name, ratios in (("second", price.rates), ("processor second of the steps' thread", price.threads)):
        lost, error = cost.share_lost(ratios, cost.mean_and_error)
        said = f"watched {-lost:+.2%}, give or take {error:.2%}" if len(ratios) > 1 else "not measured, too short a run"
        console.print(f"real tokens per {name}: {said}; all {len(ratios)} units of four turns, outliers too")
    for kind, cores in price.beside.items():
        console.print(f"beside the training, {kind} takes {cores:+.3f} cores while watched")


if __name__ == "__main__":
    sys.exit(main())
