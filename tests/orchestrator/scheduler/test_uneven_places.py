"""Places that differ: a job is sized by where it goes, and nobody stays on a slow one while a fast one is free."""

import math
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.scheduler.policy import POLICIES, decide
from orchestrator.scheduler.view import (
    ActorShape,
    ActorState,
    ActorView,
    ClusterView,
    JobSize,
    JobView,
    MemoryModel,
    SpeedModel,
)
from orchestrator.simulation.bounds import lower_bound, unshared_lower_bound
from orchestrator.simulation.simulator import Simulation
from orchestrator.simulation.trace import TraceJob, read_profile
from orchestrator.simulation.workload import WorkloadShape, generate
from support.repository import TRACES

H100, A100 = (read_profile(TRACES / f"{name}-7b.yaml") for name in ("h100", "a100"))
HALF = H100.model_copy(
    update={"name": "half", "step_seconds": 0.12, "token_seconds": 1.5e-4, "memory_bytes": 40 * 10**9}
)
GPU = A100.model_copy(
    update={"name": "gpu-1b", "step_seconds": 0.04, "token_seconds": 4e-5, "base_bytes": 2_600_000_000}
)
CPU = GPU.model_copy(update={"name": "cpu-1b", "step_seconds": 0.5, "token_seconds": 1.5e-3, "microbatch_tokens": 1024})


def place(device, limit, speed=1.0):
    models = {"speeds": {"b": SpeedModel(0.1 / speed, 1e-4 / speed, 0.0)}, "memories": {"b": MemoryModel(100, 1.0)}}
    return ActorView(device, device, ActorState.READY, ActorShape(device, 8192), "b", None, limit, **models)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_job_is_sized_by_the_place_that_it_goes_to(policy):
    """Micro-batches of 8192 tokens on the GPU, of 1024 on the CPU: it fits on the CPU only, and just."""
    job = JobView("j", "b", 0, 0, 50, 8192, sizes={"cpu": JobSize(20, 1024), "cuda": JobSize(50, 8192)})
    gpu = place("cuda", 8000, speed=50)
    seen = ClusterView((job,), (gpu, place("cpu", 1144)), {})
    assert decide(seen, policy).placements == {"j": "cpu"}
    refused = decide(replace(seen, actors=(gpu, place("cpu", 1143))), policy)
    assert "(1144 bytes) with its base model, the roomiest actor may use 1 KiB (1143 bytes)" in refused.rejections["j"]
    assert decide(replace(seen, actors=(place("cuda", 8342, speed=50), place("cpu", 9000))), policy).placements == {
        "j": "cuda" if policy in ("srpt", "cosrpt") else "cpu"
    }


def traced(name, arrival, steps):
    return TraceJob(job=name, arrival_s=arrival, steps=steps, tokens_per_step=4000, adapter_bytes=10, base_model="b")


@pytest.mark.parametrize("policy", ["srpt", "cosrpt"])
def test_a_job_that_gave_way_on_the_fast_place_does_not_stay_on_the_slow_one(policy):
    """The short one has the GPU for itself; the long one is on the CPU for so long, and comes back."""
    jobs = [traced("long", 0.0, 5000), traced("short", 10.0, 200)]
    outcome = Simulation(jobs, [GPU, CPU], policy).run()
    long, short = outcome.turnaround
    assert short < 1.5 * outcome.alone[1]
    assert long < outcome.alone[0] + short + 5 * GPU.swap_seconds


def test_nobody_shares_a_step_of_the_fast_place_while_a_slow_one_is_nearly_as_good():
    """Two jobs of mostly fixed cost share where the other place crawls, and do not where it is half as fast."""
    seconds = 0.1
    for speed, shares in ((0.02, True), (0.5, False)):
        places = tuple(
            replace(place(name, None), id=name, name=name, speeds={"b": SpeedModel(seconds / s, 4e-5 / s, 0.0)})
            for name, s in (("fast", 1.0), ("slow", speed))
        )
        jobs = tuple(JobView(f"j{n}", "b", 0, n, 10, 1000, steps_left=1000 + n) for n in range(2))
        placed = decide(ClusterView(jobs, places, {})).placements
        assert (len({*placed.values()}) == 1) == shares, (speed, placed)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_no_policy_goes_below_the_bound_of_devices_that_differ(policy):
    for devices in ([H100, A100, A100], [GPU, CPU]):
        jobs = generate(60, devices[0], 2, WorkloadShape(load=1.2, seconds=300, bases=2), seed=5)
        mean = Simulation(jobs, devices, policy).run().turnaround.mean()
        assert mean >= lower_bound(jobs, devices) * (1 - 1e-9)
        if policy in ("fifo", "srpt"):
            assert mean >= unshared_lower_bound(jobs, devices) * (1 - 1e-9)
    assert lower_bound(jobs, [GPU] * 2) < lower_bound(jobs, [GPU, CPU]) <= lower_bound(jobs, [GPU]) * (1 + 1e-9)


@pytest.mark.slow
def test_cosrpt_is_ahead_where_devices_differ():
    """Of `benchmarks/scheduling/uneven.py` four small ones; the limits are what was measured plus some room."""
    ratios = []
    for number, devices in enumerate([[H100, A100, A100], [H100, HALF, HALF], [GPU, CPU], [GPU, GPU, CPU, CPU]]):
        shape = WorkloadShape(load=1.4, seconds=300, spread=1.6, burstiness=1.5 + number % 2)
        jobs = generate(100, devices[0], 2 if number < 3 else 3, shape, seed=number)
        means = {p: Simulation(jobs, devices, p).run().turnaround.mean() for p in ("srpt", "fifo-memory", "cosrpt")}
        ratios.append(means["cosrpt"] / min(means["srpt"], means["fifo-memory"]))
    assert max(ratios) < 1.02, ratios
    assert math.exp(np.log(ratios).mean()) < 0.90, ratios
