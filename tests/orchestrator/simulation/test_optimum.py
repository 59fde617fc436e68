"""cosrpt against the exact optimum of small instances, and the optimum against closed formulas."""

import numpy as np
import pytest

from orchestrator.simulation.bounds import Task, lower_bound, tasks_of
from orchestrator.simulation.optimum import optimum, optimum_of_bases
from orchestrator.simulation.simulator import Simulation
from orchestrator.simulation.workload import small_instance, small_instance_of_bases


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
        mean = float(Simulation(jobs, [profile] * actors, "cosrpt").run().turnaround.mean())
        tasks = tasks_of(jobs, profile)
        ratios.append(mean / optimum(tasks, profile.step_seconds, actors, upper_bound=1.2 * mean))
    assert min(ratios) >= 1 - 1e-6
    assert np.mean(ratios) <= 1.05
    assert max(ratios) <= 1.15


def test_a_base_model_is_left_for_a_batch_that_is_worth_its_loading():
    """100 s of A against three times 1 s of B behind a loading of 10 s: B goes first, and A comes back for 10 s."""
    tasks = [Task(0.0, 100, 1.0), *[Task(0.0, 1, 1.0)] * 3]
    bases = ["A", "B", "B", "B"]
    assert optimum_of_bases(tasks, bases, 10.0, 1e-9) == pytest.approx((11 + 12 + 13 + 123) / 4)
    assert optimum_of_bases(tasks, bases, 400.0, 1e-9) == pytest.approx((100 + 501 + 502 + 503) / 4)


def test_small_instances_of_several_base_models_are_close_to_the_optimum_and_it_to_no_bound_too_high():
    ratios = []
    for seed in range(25):
        for gap in (0.0, 0.5):
            jobs, profile, actors = small_instance_of_bases(seed, gap)
            mean = float(Simulation(jobs, [profile] * actors, "cosrpt").run().turnaround.mean())
            tasks = tasks_of(jobs, profile)
            bases = [job.base_model for job in jobs]
            best = optimum_of_bases(tasks, bases, profile.base_load_seconds, profile.step_seconds, 1.2 * mean)
            assert lower_bound(jobs, [profile] * actors) <= best * (1 + 1e-9)
            assert mean >= best * (1 - 1e-6)
            if not gap:
                ratios.append(mean / best)
    assert np.mean(ratios) <= 1.10
    assert max(ratios) <= 1.25
