"""Devices that differ: what the best of them are together, and how many of those the others are worth."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from orchestrator.simulation.trace import Profile, TraceJob, work_of


def ideal_device(devices: Sequence[Profile]) -> Profile:
    """A device that does everything as the best of some do it; of equal ones it is their own profile."""
    first = devices[0]
    best = {
        "step_seconds": min(device.step_seconds for device in devices),
        "token_seconds": min(device.token_seconds for device in devices),
        "adapter_seconds": min(device.adapter_seconds for device in devices),
        "microbatch_tokens": max(device.microbatch_tokens for device in devices),
        "base_load_seconds": min(device.base_load_seconds for device in devices),
    }
    return first.model_copy(update=best)


def relative_speeds(
    jobs: Sequence[TraceJob], devices: Sequence[Profile], seconds: Callable[[TraceJob, Profile], float]
) -> list[float]:
    """The speed of each device in parts of the ideal one's, at the job that it does best.

    Args:
        jobs: Those in question.
        devices: One for each actor.
        seconds: What a job takes on a device.
    """
    ideal = ideal_device(devices)
    least = [seconds(job, ideal) for job in jobs]
    speeds = {
        device: max(best / seconds(job, device) for job, best in zip(jobs, least, strict=True))
        for device in set(devices)
    }
    return [speeds[device] for device in devices]


def seconds_alone(job: TraceJob, device: Profile) -> float:
    """Of a whole job on an actor of its own."""
    return work_of(job, device).alone


def seconds_added(job: TraceJob, device: Profile) -> float:
    """What one of its steps adds to a shared step."""
    return work_of(job, device).added


def load_of(jobs: Sequence[TraceJob], devices: Sequence[Profile]) -> float:
    """Work that comes in over what all actors can do alone, in the same time; each device by its mean speed."""
    span = max(job.arrival_s for job in jobs) - min(job.arrival_s for job in jobs)
    rate = sum(count / sum(seconds_alone(job, device) for job in jobs) for device, count in Counter(devices).items())
    return 1 / (rate * span) if span else math.inf
