"""Fresh workloads for the simulator, drawn from a seed: the same numbers give the same jobs on every machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.simulation.trace import Profile, TraceJob, work_of

_RANKS = (8, 16, 32, 64, 128)
_BYTES_PER_RANK = (8_388_608, 39_976_960)  # of a 7B model: q and v only, or all linear layers; 16 bytes a value
_BATCHES = (1, 2, 4, 8, 16, 32)
_WITHIN_A_GRID = 0.3  # sigma of the logarithm of the times alone of one grid


@dataclass(frozen=True)
class WorkloadShape:
    """What a workload looks like.

    Attributes:
        load: Work that comes in, in seconds alone, per second of all actors together.
        seconds: Median of the time that a job takes alone.
        spread: Sigma of its logarithm.
        shortest: Seconds that no job is shorter than.
        burstiness: Coefficient of variation of the gaps between arrivals; 1: a Poisson stream.
        grid: Mean number of jobs that are submitted at once; such jobs share a base model, and their times alone
            differ little (`_WITHIN_A_GRID`).
        bases: Base models; each job draws one, the first is the most frequent.
        runs: Mean number of jobs in a row that share a base model.
        urgent: Share of the jobs that have `urgent_priority`.
    """

    load: float = 1.0
    seconds: float = 900.0
    spread: float = 1.6
    shortest: float = 20.0
    burstiness: float = 3.0
    grid: float = 1.0
    bases: int = 1
    runs: float = 1.0
    urgent: float = 0.0
    urgent_priority: int = 3


def generate(count: int, profile: Profile, actors: int, shape: WorkloadShape, seed: int) -> list[TraceJob]:
    """A trace.

    Args:
        count: Number of jobs.
        profile: The device; job lengths in seconds refer to it.
        actors: How many of them the load refers to.
        shape: What it looks like.
        seed: Of all random numbers.
    """
    random = np.random.default_rng(seed)
    tokens = random.choice(_BATCHES, count) * np.exp(random.normal(math.log(180), 0.8, count)).clip(16, 2048)
    size = random.choice(_RANKS, count) * random.choice(_BYTES_PER_RANK, count)
    wanted = np.exp(random.normal(math.log(shape.seconds), shape.spread, count)).clip(shape.shortest, 2 * 86400)
    bases = _bases(count, shape, random)
    urgent = random.random(count) < shape.urgent
    gaps = _gaps(count, shape.burstiness, random)
    grids: Sequence[str | None] = [None] * count
    if shape.grid > 1:
        first = _first_of_grid(count, shape.grid, random)
        wanted = (wanted[first] * np.exp(random.normal(0.0, _WITHIN_A_GRID, count))).clip(shape.shortest, 2 * 86400)
        bases = [bases[one] for one in first]
        gaps[first < np.arange(count)] = 0.0
        grids = [f"g{one:05d}" for one in first]
    jobs = []
    for n in range(count):
        step = profile.step_seconds + profile.speed.added(float(tokens[n]), profile.microbatch_tokens)
        jobs.append(
            TraceJob(
                job=f"j{n:05d}",
                arrival_s=0.0,
                steps=max(1, round(float(wanted[n]) / step)),
                tokens_per_step=round(float(tokens[n]), 1),
                adapter_bytes=int(size[n]),
                base_model=f"base-{bases[n]}",
                priority=shape.urgent_priority if urgent[n] else 0,
                grid=grids[n],
            )
        )
    work = sum(work_of(job, profile).alone for job in jobs)
    span = work / (actors * shape.load)
    arrival = np.concatenate([[0.0], np.cumsum(gaps[1:])])
    arrival *= span / max(float(arrival[-1]), 1e-9)
    return [job.model_copy(update={"arrival_s": round(float(at), 1)}) for job, at in zip(jobs, arrival, strict=True)]


def small_instance_of_bases(seed: int, gap: float = 0.0) -> tuple[list[TraceJob], Profile, int]:
    """Three to five jobs of two or three base models on one actor; to load one takes from 10 to 300 s.

    Args:
        seed: Of all random numbers.
        gap: Between arrivals, in minutes on average; 0: all at once.
    """
    random = np.random.default_rng([seed, 1])
    jobs, profile, _ = small_instance(seed)
    bases, now, few = int(random.integers(2, 4)), 0.0, []
    for number in range(int(random.integers(3, 6))):
        drawn = {
            "job": f"j{number}",
            "arrival_s": round(now, 3),
            "steps": int(math.exp(random.uniform(math.log(20), math.log(1000)))),
            "tokens_per_step": 1000 * math.exp(random.uniform(math.log(0.03), math.log(5))),
            "base_model": f"base-{int(random.integers(bases)) if number else 0}",
        }
        few.append(jobs[0].model_copy(update=drawn))
        now += gap * float(random.exponential(60))
    load = round(math.exp(random.uniform(math.log(10), math.log(300))), 1)
    return few, profile.model_copy(update={"base_load_seconds": load}), 1


def small_instance(seed: int) -> tuple[list[TraceJob], Profile, int]:
    """Up to five jobs on one or two actors, at once or one after another, from far below to far above saturation.

    Small enough for `optimum`. Swaps, loading and memory cost nothing.
    """
    random = np.random.default_rng(seed)
    actors = int(random.choice([1, 1, 2]))
    free = dict.fromkeys(("base_bytes", "reserve_bytes", "activation_bytes_per_token", "swap_seconds"), 0)
    profile = Profile(
        name="small",
        step_seconds=0.1,
        token_seconds=1e-4,
        adapter_seconds=0.0,
        memory_bytes=10**12,
        microbatch_tokens=10**9,
        base_load_seconds=0,
        **free,
    )
    gap, now, jobs = float(random.choice([0.0, 0.3, 1.0])), 0.0, []
    for number in range(int(random.integers(2, 6 if actors == 1 else 5))):
        jobs.append(
            TraceJob(
                job=f"j{number}",
                arrival_s=round(now, 3),
                steps=int(math.exp(random.uniform(math.log(20), math.log(1000)))),
                tokens_per_step=1000 * math.exp(random.uniform(math.log(0.03), math.log(5))),
                adapter_bytes=0,
                base_model="base",
            )
        )
        now += gap * float(random.exponential(60))
    return jobs, profile, actors


def _gaps(count: int, variation: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Gaps between arrivals with mean 1: exponential, or a mixture of two exponentials for bursts."""
    if variation <= 1:
        return random.exponential(1.0, count)
    share = 0.5 * (1 + math.sqrt((variation**2 - 1) / (variation**2 + 1)))
    short = random.random(count) < share
    return random.exponential(1.0, count) * np.where(short, 0.5 / share, 0.5 / (1 - share))


def _first_of_grid(count: int, mean: float, random: np.random.Generator) -> NDArray[np.int64]:
    """For each job the number of the first of its grid; sizes are geometric."""
    starts = random.random(count) < 1 / mean
    starts[0] = True
    return np.maximum.accumulate(np.where(starts, np.arange(count), 0))


def _bases(count: int, shape: WorkloadShape, random: np.random.Generator) -> Sequence[int]:
    """The base model of each job: number k is k + 1 times as rare as the first, and they come in runs."""
    chances = 1.0 / np.arange(1, shape.bases + 1)
    chances /= chances.sum()
    drawn: list[int] = []
    for _ in range(count):
        if drawn and random.random() < 1 - 1 / max(shape.runs, 1.0):
            drawn.append(drawn[-1])
        else:
            drawn.append(int(random.choice(shape.bases, p=chances)))
    return drawn
