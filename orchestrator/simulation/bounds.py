"""Mean turnarounds that no scheduler can go below, and the very best one for a handful of jobs.

The relaxation: all actors together are one machine that is as fast as all of them, on which a step costs only what
the job itself adds to a shared step (v_j), as if the fixed cost of a step were shared by infinitely many.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.simulation.devices import ideal_device, relative_speeds, seconds_added, seconds_alone
from orchestrator.simulation.trace import Profile, TraceJob, work_of


@dataclass(frozen=True)
class Task:
    """One job as the bounds see it.

    Attributes:
        release: When it arrives.
        steps: n.
        added: v, seconds that its step adds to a shared step.
        weight: In the weighted sum of turnarounds (exact optimum only).
    """

    release: float
    steps: float
    added: float
    weight: float = 1.0


def tasks_of(jobs: Sequence[TraceJob], profile: Profile) -> list[Task]:
    """The jobs of a trace as the bounds see them, on a device."""
    return [Task(job.arrival_s, job.steps, work_of(job, profile).added) for job in jobs]


def lower_bound(jobs: Sequence[TraceJob], devices: Sequence[Profile]) -> float:
    """The lower bound of the mean turnaround of a trace, on devices that begin with the first of its base models.

    Devices that differ count as so many of the ideal one as are at least as fast as all of them together.
    """
    bases = [job.base_model for job in jobs]
    loaded = list(dict.fromkeys(bases))[: len(devices)]
    ideal, speeds = ideal_device(devices), relative_speeds(jobs, devices, seconds_added)
    load, tasks = ideal.base_load_seconds, tasks_of(jobs, ideal)
    return loading_bound(tasks, bases, loaded, load, ideal.step_seconds, sum(speeds), slowest=min(speeds))


def unshared_lower_bound(jobs: Sequence[TraceJob], devices: Sequence[Profile]) -> float:
    """The same for every scheduler that runs one job per actor, to which what holds for all of them applies as well."""
    ideal, speeds = ideal_device(devices), relative_speeds(jobs, devices, seconds_alone)
    return max(lower_bound(jobs, devices), unshared_bound(tasks_of(jobs, ideal), ideal.step_seconds, sum(speeds)))


def relaxed_bound(tasks: Sequence[Task], shared: float, actors: float) -> float:
    """A lower bound of the mean turnaround for every scheduler, shared steps included.

    Args:
        tasks: All jobs.
        shared: a, the fixed seconds of a step.
        actors: Number of actors; of a faster one it may be a fraction.
    """
    return _bound(tasks, [task.steps * task.added / actors for task in tasks], shared)


def loading_bound(
    tasks: Sequence[Task],
    bases: Sequence[str],
    loaded: Collection[str],
    load: float,
    shared: float,
    actors: float,
    slowest: float = 1.0,
) -> float:
    """A lower bound of the mean turnaround where each further base model must be loaded at least once.

    The larger of two. No job of such a base model begins before it can have been loaded, or: the loading is work of
    the relaxed machine, for those jobs of the base model that come first. Nobody loads what no job has named yet.

    Args:
        tasks: All jobs.
        bases: The base model of each.
        loaded: Those that actors have at the start.
        load: Seconds to load one.
        shared: a, the fixed seconds of a step.
        actors: Number of actors.
        slowest: Speed of the slowest of them: a loading there holds up that much of the relaxed machine.
    """
    first: dict[str, float] = {}
    for task, base in zip(tasks, bases, strict=True):
        first[base] = min(first.get(base, task.release), task.release)
    firsts = [(base, task.release) for task, base in zip(tasks, bases, strict=True)]
    later, work = [], []
    for task, base in zip(tasks, bases, strict=True):
        ready = task.release if base in loaded else max(task.release, first[base] + load)
        later.append(replace(task, release=ready))
        comes_first = base not in loaded and task.release == first[base]
        loading = slowest * load / firsts.count((base, task.release)) if comes_first else 0.0
        work.append((task.steps * task.added + loading) / actors)
    delay = float(np.mean([after.release - task.release for task, after in zip(tasks, later, strict=True)]))
    release = [task.release for task in tasks]
    ends, _ = _one_machine(release, work, remaining=True)
    return max(relaxed_bound(later, shared, actors) + delay, float(np.mean(np.array(ends) - release)))


def unshared_bound(tasks: Sequence[Task], shared: float, actors: float) -> float:
    """A lower bound of the mean turnaround for every scheduler that runs one job per actor."""
    return _bound(tasks, [task.steps * (shared + task.added) / actors for task in tasks], shared)


def slowdown_bound(tasks: Sequence[Task], shared: float, actors: float) -> float:
    """A lower bound of the largest slowdown (turnaround over time alone) for every scheduler, to within a thousandth.

    On the relaxed machine all jobs can keep a slowdown s exactly if earliest deadline first keeps it, with the
    deadlines release + s * (time alone).
    """
    order = sorted(range(len(tasks)), key=lambda job: tasks[job].release)
    release = [tasks[job].release for job in order]
    work = [tasks[job].steps * tasks[job].added / actors for job in order]
    alone = [tasks[job].steps * (shared + tasks[job].added) for job in order]

    def kept(slowdown: float) -> bool:
        heap: list[tuple[float, float]] = []  # deadline, work left
        now, arrived = 0.0, 0
        while heap or arrived < len(order):
            if not heap:
                now = max(now, release[arrived])
            while arrived < len(order) and release[arrived] <= now:
                heapq.heappush(heap, (release[arrived] + slowdown * alone[arrived], work[arrived]))
                arrived += 1
            deadline, left = heap[0]
            until = release[arrived] if arrived < len(order) else float("inf")
            if now + left <= until:
                now += left
                heapq.heappop(heap)
                if now > deadline:
                    return False
            else:
                heapq.heapreplace(heap, (deadline, left - (until - now)))
                now = until
        return True

    low, high = 1.0, 2.0
    if kept(low):
        return low
    while not kept(high):
        low, high = high, 2 * high
    while high > low * 1.001:
        middle = (low + high) / 2
        low, high = (low, middle) if kept(middle) else (middle, high)
    return low


def _bound(tasks: Sequence[Task], work: Sequence[float], shared: float) -> float:
    """The largest of three: alone, shortest remaining first on the fast machine, and mean busy times there."""
    release = [task.release for task in tasks]
    ends, _ = _one_machine(release, work, remaining=True)
    srpt = float(np.mean(np.array(ends) - release))
    _, busy = _one_machine(release, work, remaining=False)
    # No job works at more than 1 / (its time alone), so that its end is at least half of that after its mean busy time.
    alone = np.array([task.steps * (shared + task.added) for task in tasks])
    mean_busy = float(np.mean(np.array(busy) - release + alone / 2))
    return max(float(alone.mean()), srpt, mean_busy)


def _one_machine(
    release: Sequence[float], work: Sequence[float], *, remaining: bool
) -> tuple[list[float], list[float]]:
    """Pre-emptive single machine, least work first: ends and mean busy times.

    Args:
        release: Arrival of each job.
        work: Seconds it takes.
        remaining: Whether the least *remaining* work goes first (least sum of ends), or the least work at arrival
            (least sum of mean busy times).
    """
    order = sorted(range(len(work)), key=lambda job: release[job])
    left, ends, moment = list(work), [0.0] * len(work), [0.0] * len(work)
    heap: list[tuple[float, int]] = []
    now, arrived = 0.0, 0
    while heap or arrived < len(order):
        if not heap:
            now = max(now, release[order[arrived]])
        while arrived < len(order) and release[order[arrived]] <= now:
            heapq.heappush(heap, (work[order[arrived]], order[arrived]))
            arrived += 1
        key, job = heap[0]
        until = release[order[arrived]] if arrived < len(order) else float("inf")
        spent = min(left[job], until - now)
        moment[job] += spent * (now + spent / 2)
        now += spent
        left[job] -= spent
        if left[job] <= 1e-12:
            heapq.heappop(heap)
            ends[job] = now
        elif remaining:
            heapq.heapreplace(heap, (key - spent, job))
    return ends, [total / max(size, 1e-12) for total, size in zip(moment, work, strict=True)]
