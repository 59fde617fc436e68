"""Workloads of the scheduler's benchmark: drawn from seeds, and recorded ones at several loads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from orchestrator.simulation.devices import load_of
from orchestrator.simulation.trace import Profile, TraceJob, read_profile, read_trace
from orchestrator.simulation.workload import WorkloadShape, generate

_MANY_BASES_ACTORS = (1, 1, 2, 2, 4, 8)
TRACES = Path(__file__).parents[2] / "configs" / "traces"
LOADS = (0.9, 1.2, 1.5, 2.0)
_SINGLE = {
    "bursts": WorkloadShape(seconds=600, spread=2.0, burstiness=3.0),
    "even": WorkloadShape(seconds=600, spread=1.4, burstiness=1.5),
}
_GRIDS = {"grids": WorkloadShape(seconds=600, spread=1.6, burstiness=1.5, grid=12)}
Scenario = tuple[list[TraceJob], Profile, int]
UnevenScenario = tuple[list[TraceJob], list[Profile]]  # a device for each actor


def devices() -> list[Profile]:
    """Two devices with a 7B base, and one with a 1B base whose steps are mostly fixed cost."""
    h100, a100 = (read_profile(TRACES / f"{name}-7b.yaml") for name in ("h100", "a100"))
    small = {"step_seconds": 0.04, "token_seconds": 4e-5, "adapter_seconds": 0.001, "base_bytes": 2_600_000_000}
    return [h100, a100, a100.model_copy(update={"name": "a100-1b", "activation_bytes_per_token": 7e5, **small})]


def scenarios(count: int, actors: int = 4) -> dict[str, Scenario]:
    """24 workloads: three devices, four loads, heavy-tailed jobs in bursts or more even ones."""
    return _drawn(count, actors, _SINGLE, 100)


def grids(count: int, actors: int = 4) -> dict[str, Scenario]:
    """12 workloads of the same devices and loads, whose jobs come in grids of a dozen."""
    return _drawn(count, actors, _GRIDS, 200)


def many_bases(count: int) -> dict[str, Scenario]:
    """36 workloads of 2 to 12 base models on 1 to 8 actors, with jobs of seconds to hours and 20 to 300 s to load.

    Every second one comes in bursts, and in every third the jobs of a base model come in runs.
    """
    random = np.random.default_rng(300)
    workloads: dict[str, Scenario] = {}
    for number in range(36):
        actors = _MANY_BASES_ACTORS[number % len(_MANY_BASES_ACTORS)]
        load_seconds = round(float(np.exp(random.uniform(math.log(20), math.log(300)))))
        shape = WorkloadShape(
            load=round(float(random.uniform(0.8, 1.5)), 2),
            seconds=float(np.exp(random.uniform(math.log(30), math.log(900)))),
            spread=float(random.uniform(1.0, 1.8)),
            shortest=2.0,
            burstiness=(1.0, 4.0)[number // 6 % 2],
            bases=int(random.integers(2, 13)),
            runs=(1.0, 1.0, 8.0)[number // 6 % 3],
        )
        profile = devices()[number // 2 % 3].model_copy(update={"base_load_seconds": load_seconds})
        jobs = generate(count, profile, actors, shape, 300 + number)
        workloads[f"{number} {shape.bases} on {actors}, {load_seconds} s"] = (jobs, profile, actors)
    return workloads


def uneven(count: int) -> dict[str, UnevenScenario]:
    """24 workloads on six clusters of devices that differ in speed, memory or the size of their micro-batches.

    Every second one comes in bursts. A device that is shared counts as one of half the speed and memory.
    """
    h100, a100, small = devices()
    half = {"step_seconds": 0.12, "token_seconds": 1.5e-4, "memory_bytes": 40_000_000_000}
    shared = h100.model_copy(update={"name": "half an h100-7b", **half})
    tight = a100.model_copy(update={"name": "a100-7b-40gb", "memory_bytes": 40_000_000_000})
    slow = {"step_seconds": 0.5, "token_seconds": 1.5e-3, "adapter_seconds": 0.005, "microbatch_tokens": 1024}
    cpu = small.model_copy(update={"name": "cpu-1b", **slow})
    clusters = {
        "2 h100, 4 a100": [h100] * 2 + [a100] * 4,
        "1 h100, 6 a100": [h100] + [a100] * 6,
        "2 h100, 2 halves": [h100] * 2 + [shared] * 2,
        "2 a100, 4 of 40 GB": [a100] * 2 + [tight] * 4,
        "1 a100, 1 cpu": [small, cpu],
        "2 a100, 4 cpu": [small] * 2 + [cpu] * 4,
    }
    workloads: dict[str, UnevenScenario] = {}
    for name, cluster in clusters.items():
        for load, bursts, bases in ((0.9, 3.0, 1), (1.2, 1.5, 1), (1.6, 3.0, 1), (1.2, 3.0, 3)):
            shape = WorkloadShape(seconds=300, spread=1.6, burstiness=bursts, bases=bases, runs=4)
            jobs = generate(count, cluster[0], len(cluster), shape, 500 + len(workloads))
            words = f"{name}, {load:g}" + (f", {bases} bases" if bases > 1 else "")
            workloads[words] = (_coming_at(jobs, load_of(jobs, cluster) / load), cluster)
    return workloads


def _drawn(count: int, actors: int, kinds: Mapping[str, WorkloadShape], seed: int) -> dict[str, Scenario]:
    workloads: dict[str, Scenario] = {}
    for profile in devices():
        for load in LOADS:
            for kind, shape in kinds.items():
                jobs = generate(count, profile, actors, replace(shape, load=load), seed + len(workloads))
                workloads[f"{profile.name} {load} {kind}"] = (jobs, profile, actors)
    return workloads


def at_load(scenario: Scenario, load: float) -> Scenario:
    """The same jobs, coming sooner or later one after another."""
    jobs, profile, actors = scenario
    return _coming_at(jobs, load_of(jobs, [profile] * actors) / load), profile, actors


def _coming_at(jobs: Sequence[TraceJob], factor: float) -> list[TraceJob]:
    return [job.model_copy(update={"arrival_s": job.arrival_s * factor}) for job in jobs]


def recorded(trace: Path, profile: Path, actors: int) -> dict[str, Scenario]:
    """A recorded workload at its own arrivals' pattern, at four loads."""
    scenario = read_trace(trace), read_profile(profile), actors
    return {f"{trace.stem[:18]} {load}": at_load(scenario, load) for load in LOADS}
