"""What early stop saves under each policy, on a simulated clock: `python benchmarks/scheduling/early_stop.py`.

The 12 workloads of grids of `schedule.py`, with losses that are drawn (a tenth of the jobs diverge, three
tenths over-fit, all with noise), and the rules of `configs/traces/early-stop.yaml`, with and without the rungs.
"""

from __future__ import annotations

import argparse

from many_bases import geometric
from scenarios import TRACES, grids

from orchestrator.simulation.early_stop import StoppingSimulation
from orchestrator.simulation.loss_curves import draw_curves
from orchestrator.simulation.simulator import Simulation
from orchestrator.simulation.trace import read_rules

POLICIES = ("fifo", "fifo-4", "fifo-memory", "srpt", "cosrpt")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=240, help="jobs of each workload")
    count, rules = parser.parse_args().jobs, read_rules(TRACES / "early-stop.yaml")
    own = rules.model_copy(update={"halving_steps": None})
    print(
        f"{'':12s} mean turnaround over that with all steps; over fifo-memory's; steps saved; grids without their best"
    )
    runs: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
    for seed, (jobs, profile, actors) in enumerate(grids(count).values()):
        curves, devices = draw_curves(jobs, seed), [profile] * actors
        for policy in POLICIES:
            whole = Simulation(jobs, devices, policy).run().turnaround.mean()
            for name, some in (("own losses", own), ("and rungs", rules)):
                found = StoppingSimulation(jobs, devices, policy, some, curves).run_and_count()
                mean = found.outcome.turnaround.mean()
                lost = found.best_lost / found.grids
                runs.setdefault((policy, name), []).append((mean / whole, mean, found.steps_saved, lost))
    for (policy, name), found in runs.items():
        peer = [one[1] for one in runs["fifo-memory", name]]
        against = geometric([one[1] / other for one, other in zip(found, peer, strict=True)])
        saved, lost = (sum(one[place] for one in found) / len(found) for place in (2, 3))
        ratio = geometric([one[0] for one in found])
        print(f"{policy:12s} {name:11s} {ratio:6.2f} {against:6.2f} {saved:6.0%} {lost:6.0%}")


if __name__ == "__main__":
    main()
