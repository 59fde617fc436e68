"""What plans count of jobs that by what was measured are too large for every place, and train all the same.

An actor whose memory is short makes its batches smaller and goes on. To count such a job in full would be to take
it off, and never to find a place for it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gpu_actor.contract.description import BaseDescription
from orchestrator.scheduler.estimate import prior_memory
from orchestrator.scheduler.view import ActorView, JobSize, JobView, MemoryModel


@dataclass(frozen=True)
class _EmptyPlace:
    """A place without jobs.

    Attributes:
        device: Its device.
        bytes: Beside a base model, as measured.
        per_token: Bytes of a token of a shared batch.
        cap: Most tokens of a shared batch.
        guess: The memory that the base model takes by shapes alone; None: it is not described.
        limit: Bytes that may be used.
    """

    device: str
    bytes: float
    per_token: float
    cap: int
    guess: MemoryModel | None
    limit: float

    def left(self, tokens: int) -> float:
        """Bytes for an adapter whose micro-batches have so many tokens."""
        return self.bytes - self.per_token * max(self.cap, tokens)

    def holds_by_guess(self, adapter_bytes: int) -> bool:
        """Whether shapes alone say that an adapter fits, if its shared batches are small."""
        guess = self.guess
        return guess is not None and guess.fixed_bytes + adapter_bytes + guess.bytes_per_token <= self.limit

    def holds(self, job: JobView) -> bool:
        """Whether a job fits here."""
        size = job.size_on(self.device)
        return size.bytes <= self.left(size.worst_tokens)


def fit_oversized_jobs(
    jobs: Iterable[JobView], places: Sequence[ActorView], bases: Mapping[str, BaseDescription]
) -> tuple[JobView, ...]:
    """The same jobs; one that has started and fits nowhere alone counts with the micro-batches that do fit.

    An adapter does not become smaller. Where that is what does not fit, a running job is not taken off. A queued one
    counts as what fills the roomiest place, if by the guess it fits there: it has run, a fit wavers, and the actor
    itself will tell. Else it waits.

    Args:
        jobs: Jobs of a look.
        places: With what was measured of them.
        bases: Descriptions of base models.
    """
    empty_places: dict[str, list[_EmptyPlace]] = {}

    def fitted(job: JobView) -> JobView:
        if not job.started:
            return job
        if job.base_model not in empty_places:
            empty_places[job.base_model] = _empty_places(job.base_model, places, bases)
        return _fit(job, empty_places[job.base_model])

    return tuple(map(fitted, jobs))


def _empty_places(
    base_model: str, places: Iterable[ActorView], bases: Mapping[str, BaseDescription]
) -> list[_EmptyPlace]:
    """Of every place that may host a base model; each kind of place once."""
    base = bases.get(base_model)
    distinct: dict[_EmptyPlace, None] = {}
    for place in places:
        memory = place.memories.get(base_model)
        if memory is not None and place.pinned in (None, base_model):
            limit = math.inf if place.memory_limit is None else place.memory_limit
            empty = limit - memory.fixed_bytes
            guess = prior_memory(base, place.shape) if base else None
            one = _EmptyPlace(place.shape.device, empty, memory.bytes_per_token, memory.token_cap or 0, guess, limit)
            distinct[one] = None
    return list(distinct)


def _fit(job: JobView, empty_places: Sequence[_EmptyPlace]) -> JobView:
    if not empty_places or any(place.holds(job) for place in empty_places):
        return job
    roomiest = max(empty_places, key=lambda place: place.left(0) - job.size_on(place.device).bytes)
    if job.size_on(roomiest.device).bytes > roomiest.left(0):
        return replace(job, movable=False) if job.actor is not None else _filling(job, empty_places)
    sizes = {
        device: size._replace(worst_tokens=min(size.worst_tokens, roomiest.cap)) for device, size in job.sizes.items()
    }
    return replace(job, worst_tokens=min(job.worst_tokens, roomiest.cap), sizes=sizes)


def _filling(job: JobView, empty_places: Sequence[_EmptyPlace]) -> JobView:
    """The job as large as the roomiest place that holds it by the guess."""
    possible = [place for place in empty_places if place.holds_by_guess(job.size_on(place.device).bytes)]
    if not possible:
        return job
    roomiest = max(possible, key=lambda place: place.left(0))
    size = JobSize(max(0, math.floor(roomiest.left(0))), min(job.size_on(roomiest.device).worst_tokens, roomiest.cap))
    return replace(job, sizes={**job.sizes, roomiest.device: size})
