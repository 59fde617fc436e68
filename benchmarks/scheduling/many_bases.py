"""Many base models on few actors, on a simulated clock: `python benchmarks/scheduling/many_bases.py [--jobs N]`.

36 workloads from seeds and two traces; `schedule.py` prints the same rows beside its own. `srpt` has the
rule of `cosrpt` for base models, so that what is between them is what shared steps bring.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scenarios import TRACES, Scenario, many_bases

from orchestrator.scheduler.view import ClusterView, Plan
from orchestrator.simulation.bounds import lower_bound, tasks_of
from orchestrator.simulation.devices import load_of
from orchestrator.simulation.optimum import optimum_of_bases
from orchestrator.simulation.simulator import Simulation
from orchestrator.simulation.trace import read_profile, read_trace
from orchestrator.simulation.workload import small_instance_of_bases

Row = tuple[str, str, str, float]
COMPARED = ("fifo-4", "fifo-memory", "srpt", "cosrpt")


@dataclass(frozen=True)
class Run:
    """What became of a workload under a policy."""

    mean: float
    makespan: float
    loads: int


class _CountingSimulation(Simulation):
    """Counts the loadings of base models."""

    loads = 0

    def _ask(self, view: ClusterView) -> Plan:
        plan = super()._ask(view)
        self.loads += len(plan.rehosts)
        return plan


def simulate(scenario: Scenario, policy: str) -> Run:
    """One run."""
    jobs, profile, actors = scenario
    simulation = _CountingSimulation(jobs, [profile] * actors, policy)
    outcome = simulation.run()
    return Run(float(outcome.turnaround.mean()), outcome.makespan, simulation.loads)


def geometric(values: Sequence[float]) -> float:
    """Geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def exact(count: int, gap: float) -> tuple[float, float]:
    """Mean and worst ratio to the exact optimum, which knows all arrivals, of small instances."""
    ratios = []
    for seed in range(count):
        jobs, profile, actors = small_instance_of_bases(seed, gap)
        mean = simulate((jobs, profile, actors), "cosrpt").mean
        tasks = tasks_of(jobs, profile)
        bases = [job.base_model for job in jobs]
        ratios.append(mean / optimum_of_bases(tasks, bases, profile.base_load_seconds, profile.step_seconds, mean))
    return float(np.mean(ratios)), max(ratios)


def base_rows(count: int, small: int) -> list[Row]:
    """The rows of many base models.

    Args:
        count: Jobs of each workload.
        small: Number of small instances.
    """
    ratios: dict[str, list[float]] = {"better": [], "bound": [], "fifo-4": []}
    head = " ".join(f"{name:>11s} loads" for name in COMPARED)
    print(f"\n{'base models, actors, loading':28s} {'load':>5s} {head}   bound")
    for name, scenario in many_bases(count).items():
        jobs, profile, actors = scenario
        runs = {policy: simulate(scenario, policy) for policy in COMPARED}
        mean, lower = runs["cosrpt"].mean, lower_bound(jobs, [profile] * actors)
        shown = " ".join(f"{run.mean:11,.0f} {run.loads:5d}" for run in runs.values())
        print(f"{name:28s} {load_of(jobs, [profile] * actors):5.2f} {shown} {lower:7,.0f}", flush=True)
        ratios["better"].append(mean / min(runs["srpt"].mean, runs["fifo-memory"].mean))
        ratios["fifo-4"].append(mean / runs["fifo-4"].mean)
        ratios["bound"].append(mean / lower)
    what = "mean turnaround, many base models"
    return [
        (f"{what} / better of srpt, fifo-memory", "0.85", "0.85", geometric(ratios["better"])),
        (f"{what} / the same, the worst", "1.02", "1.00", max(ratios["better"])),
        (f"{what} / fifo-4", "-", "-", geometric(ratios["fifo-4"])),
        (f"{what} / lower bound with loadings", "-", "-", geometric(ratios["bound"])),
        *_traced_rows(),
        *_exact_rows(small),
    ]


def _traced_rows() -> list[Row]:
    tiny = (read_trace(TRACES / "tiny-9bases-1actor.csv"), read_profile(TRACES / "cpu-tiny.yaml"), 1)
    burst = (read_trace(TRACES / "many-bases-1actor-h100-7b.csv"), read_profile(TRACES / "h100-7b.yaml"), 1)
    ours, fifo = simulate(tiny, "cosrpt"), simulate(tiny, "fifo-4")
    cosrpt, srpt = (simulate(burst, policy).mean for policy in ("cosrpt", "srpt"))
    return [
        ("27 tiny jobs of 9 bases: bases loaded / bases", "1.3", "1.0", (ours.loads + 1) / 9),
        ("27 tiny jobs of 9 bases: makespan / fifo-4", "1.00", "-", ours.makespan / fifo.makespan),
        ("300 short jobs of 5 bases, 1 actor: mean, s", "-", "-", cosrpt),
        ("300 short jobs of 5 bases, 1 actor: mean of srpt, s", "-", "-", srpt),
    ]


def _exact_rows(small: int) -> list[Row]:
    rows: list[Row] = []
    for gap, words, least in ((0.0, "at once", ("1.10", "1.25")), (0.5, "arrivals foreseen", ("-", "-"))):
        mean, worst = exact(small, gap)
        rows.append((f"exact small instances of 2-3 bases, {words}, mean", least[0], "-", mean))
        rows.append((f"exact small instances of 2-3 bases, {words}, worst", least[1], "-", worst))
    return rows


def show(rows: Sequence[Row]) -> None:
    """Print what is asked at least, what is aimed at, and what was measured."""
    print(f"\n{'what':74s} {'least':>6s} {'aim':>6s} {'measured':>9s}")
    for words, least, aim, value in rows:
        print(f"{words:74s} {least:>6s} {aim:>6s} {value:9.3f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=120, help="jobs of each workload")
    show(base_rows(parser.parse_args().jobs, 60))


if __name__ == "__main__":
    main()
