"""Clusters whose devices differ, on a simulated clock: `python benchmarks/scheduling/uneven.py [--jobs N]`.

24 workloads from seeds; `schedule.py` prints the same rows beside its own. The planner that sees to it that
nobody stays on a slow place while a fast one is free is everybody's who pre-empts: `srpt` has it as well.
"""

from __future__ import annotations

import argparse

import numpy as np
from many_bases import Row, geometric, show
from scenarios import uneven

from orchestrator.simulation.bounds import lower_bound
from orchestrator.simulation.devices import load_of
from orchestrator.simulation.simulator import Simulation

COMPARED = ("fifo-4", "fifo-memory", "srpt", "cosrpt")


def uneven_rows(count: int) -> list[Row]:
    """The rows; `count` is the jobs of each workload."""
    ratios: dict[str, list[float]] = {"better": [], "fifo-4": [], "bound": []}
    print(f"\n{'devices, load':32s} {'load':>5s} " + " ".join(f"{name:>11s}" for name in COMPARED) + "   bound")
    for name, (jobs, devices) in uneven(count).items():
        runs = {policy: Simulation(jobs, devices, policy).run().turnaround for policy in COMPARED}
        means = {policy: float(times[np.isfinite(times)].mean()) for policy, times in runs.items()}
        lower = lower_bound(jobs, devices)
        shown = " ".join(f"{mean:11,.0f}" for mean in means.values())
        print(f"{name:32s} {load_of(jobs, devices):5.2f} {shown} {lower:7,.0f}", flush=True)
        ratios["better"].append(means["cosrpt"] / min(means["srpt"], means["fifo-memory"]))
        ratios["fifo-4"].append(means["cosrpt"] / means["fifo-4"])
        ratios["bound"].append(means["cosrpt"] / lower)
    what = "mean turnaround, devices that differ"
    return [
        (f"{what} / better of srpt, fifo-memory", "0.85", "0.85", geometric(ratios["better"])),
        (f"{what} / the same, the worst", "1.02", "1.00", max(ratios["better"])),
        (f"{what} / fifo-4", "-", "-", geometric(ratios["fifo-4"])),
        (f"{what} / lower bound", "-", "-", geometric(ratios["bound"])),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=120, help="jobs of each workload")
    show(uneven_rows(parser.parse_args().jobs))


if __name__ == "__main__":
    main()
