"""How long it takes to take a job off an actor, and until one that was given to an actor trains there."""

from __future__ import annotations

import time

from orchestrator.cluster.places import Place
from orchestrator.knowledge.profiles import Profiles
from orchestrator.store.records import JobRecord, Wish

_Key = tuple[str, int]


class Swaps:
    """Times swaps as the orchestrator sees them, its own ticks included, and tells the profiles."""

    def __init__(self, profiles: Profiles) -> None:
        self._profiles = profiles
        self._given: dict[_Key, float] = {}  # job and attempt -> when it was given to an actor (monotonic)
        self._asked: dict[_Key, float] = {}  # ... -> when its actor was asked to let it go

    def given(self, job: JobRecord) -> None:
        """A job was given to an actor whose base model is loaded."""
        self._given[job.id, job.attempt] = time.monotonic()

    def trains(self, place: Place, job: JobRecord) -> None:
        """A job is seen in training; only the first time counts."""
        since = self._given.pop((job.id, job.attempt), None)
        if since is not None:
            self._profiles.swapped(place, job.spec.base_model, start=time.monotonic() - since)

    def asked(self, job: JobRecord) -> None:
        """A job was wished off its actor, to make room or to go on elsewhere."""
        self._asked[job.id, job.attempt] = time.monotonic()

    def off(self, place: Place, job: JobRecord) -> None:
        """A job is off its actor, with its checkpoint."""
        since = self._asked.pop((job.id, job.attempt), None)
        if since is not None and job.wish is Wish.YIELD:
            self._profiles.swapped(place, job.spec.base_model, leave=time.monotonic() - since)

    def forget(self, job: JobRecord) -> None:
        """An assignment is over, whatever became of it."""
        self._given.pop((job.id, job.attempt), None)
        self._asked.pop((job.id, job.attempt), None)
