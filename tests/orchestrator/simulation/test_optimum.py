"""cosrpt against the exact optimum of small instances, and the optimum against closed formulas."""

import numpy as np
import pytest

from orchestrator.simulation.bounds import Task
from orchestrator.simulation.optimum import optimum
from orchestrator.simulation.simulator import Simulation
from orchestrator.simulation.trace import work_of
from orchestrator.simulation.workload import small_instance


@pytest.mark.parametrize(("added", "mean"), [(0.05, (100 * 0.2 + 100 * 0.2 + 100 * 0.15) / 2), (0.5, (60 + 180) / 2)])
def test_two_jobs_share_exactly_when_the_shorter_loses_less_than_the_overhead(added, mean):
    """100 and 200 steps. Together while both are there, if v < a; else one after the other."""
    assert optimum([Task(0.0, 100, added), Task(0.0, 200, added)], 0.1) == pytest.approx(mean)


def test_a_weight_brings_a_longer_job_forward():
    even, heavy = (optimum([Task(0.0, 100, 1.0), Task(0.0, 150, 1.0, w)], 0.1) for w in (1.0, 8.0))
    assert even == pytest.approx((110 + 275) / 2)
    assert heavy == pytest.approx((8 * 165 + 275) / 9)


def test_small_instances_are_close_to_the_optimum():
    ratios = []
    for seed in range(25):
        jobs, profile, actors = small_instance(seed)
        mean = float(Simulation(jobs, profile, actors, "cosrpt").run().turnaround.mean())
        tasks = [Task(job.arrival_s, job.steps, work_of(job, profile).added) for job in jobs]
        ratios.append(mean / optimum(tasks, profile.step_seconds, actors, upper_bound=1.2 * mean))
    assert min(ratios) >= 1 - 1e-6
    assert np.mean(ratios) <= 1.05
    assert max(ratios) <= 1.15
