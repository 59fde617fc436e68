"""One look at the cluster, as the scheduler sees it: built from the job table, the reports, and what was learned."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.errors import LorayError
from orchestrator.cluster.fleet import Fleet
from orchestrator.control.job_needs import AdapterNeed, micro_batch_cap, scheduling_view
from orchestrator.jobs.job import JobSpec, JobState
from orchestrator.knowledge.base_catalog import BaseCatalog
from orchestrator.knowledge.data_size import DataSize, guess_size, guess_sizes
from orchestrator.knowledge.place_models import with_models
from orchestrator.knowledge.profiles import Profiles
from orchestrator.scheduler.oversized_jobs import fit_oversized_jobs
from orchestrator.scheduler.view import ActorState, ActorView, ClusterView, JobView
from orchestrator.store.records import JobRecord
from orchestrator.store.store import Store


@dataclass(frozen=True)
class Look:
    """A look at the cluster.

    Attributes:
        view: What the scheduler decides on.
        held: Queued jobs that are left out of it, and why: nobody knows their base model yet.
    """

    view: ClusterView
    held: Mapping[str, str]

    def differs(self, other: Look) -> bool:
        """Whether more than progress and time lies between two looks. A job that waits is mostly the same value."""
        jobs, others = self.view.jobs, other.view.jobs
        actors = zip(self.view.actors, other.view.actors, strict=False)
        return (
            (len(jobs), len(self.view.actors)) != (len(others), len(other.view.actors))
            or self.held.keys() != other.held.keys()
            or any(_marks(a) != _marks(b) for a, b in zip(jobs, others, strict=True) if a is not b)
            or any(_places(a) != _places(b) for a, b in actors)
        )

    def events(self, last: Look) -> Events | None:
        """What happened since an earlier look, if that was arrivals and ends alone; None if it was more than that.

        A job that needs less than before, or may be moved or leaves, holds its place as it did.
        """
        if self.held.keys() != last.held.keys() or len(self.view.actors) != len(last.view.actors):
            return None
        if any(_places(a) != _places(b) for a, b in zip(self.view.actors, last.view.actors, strict=True)):
            return None
        before = {job.id: job for job in last.view.jobs}
        arrived, gone, started = [], [], {}
        for job in self.view.jobs:
            old = before.pop(job.id, None)
            if old is job:
                continue
            if old is not None and (
                job.priority != old.priority
                or job.adapter_bytes > old.adapter_bytes
                or job.worst_tokens > old.worst_tokens
            ):
                return None
            if old is None or job.actor != old.actor:
                if old is not None and old.actor is not None:
                    gone.append(job.id)
                if job.actor is None:
                    arrived.append(job)
                else:
                    started[job.id] = job.actor
        return Events(tuple(arrived), (*gone, *before), started)


@dataclass(frozen=True)
class Events:
    """What happened between two looks.

    Attributes:
        arrived: Jobs that have joined the queue.
        gone: Ids of those that are over, paused, or off their actors; the last are in `arrived` too.
        started: Job -> the place that it was given to.
    """

    arrived: tuple[JobView, ...]
    gone: tuple[str, ...]
    started: Mapping[str, str]


def _marks(job: JobView) -> object:
    return job.id, job.actor, job.movable, job.leaving, job.steps_total


def _places(actor: ActorView) -> object:
    return actor.id, actor.state, actor.base_model, actor.memory_limit, actor.reason, actor.shape


class Lookout:
    """Builds the looks of one orchestrator."""

    def __init__(
        self, store: Store, fleet: Fleet, bases: BaseCatalog, profiles: Profiles, makespan: float = 0.0
    ) -> None:
        self._makespan = makespan
        self._store, self._fleet, self._bases, self._profiles = store, fleet, bases, profiles
        self._sizes: dict[str, DataSize | None] = {}
        self._needs: dict[tuple[str, str], tuple[BaseDescription, AdapterNeed]] = {}  # by base and adapter settings
        self._views: dict[str, tuple[object, object, JobView]] = {}  # with what each was made from

    async def prepare(self) -> None:
        """Look into the data files of jobs that are new, in a thread: the next look then reads none."""
        jobs = self._store.jobs([JobState.QUEUED, JobState.RUNNING])
        new = {job.id: job.spec.dataset for job in jobs if job.id not in self._sizes}
        if new:
            self._sizes |= await asyncio.to_thread(guess_sizes, new)

    def look(self, live: Mapping[str, Mapping[str, Any]], movable: Callable[[JobRecord], bool]) -> Look:
        """The cluster now.

        Args:
            live: Progress by job, newer than what the store has.
            movable: Whether a running job may be taken off its actor now.
        """
        bases: dict[str, BaseDescription] = {}
        jobs: list[JobView] = []
        held: dict[str, str] = {}
        cap = self._cap()
        unsure: dict[str, str] = {}  # place -> why nobody knows how much memory is free there
        known: dict[str, BaseDescription | str] = {}
        for job in self._store.jobs([JobState.QUEUED, JobState.RUNNING]):
            place, ref = self._place_of(job), job.spec.base_model
            if job.state is JobState.RUNNING and place is None:
                continue  # the next tick sees that its actor is gone
            if ref not in known:
                known[ref] = self._bases.known(ref)
            found = known[ref]
            try:
                if isinstance(found, str):
                    raise LorayError(found)
                can_move = place is not None and movable(job)
                jobs.append(self._job_view(job, found, live.get(job.id, job.progress), place, cap, movable=can_move))
                bases[ref] = found
            except LorayError as error:
                (held if place is None else unsure)[place or job.id] = str(error)
        self._forget(jobs)
        places = tuple(self._places(bases, unsure))
        return Look(ClusterView(fit_oversized_jobs(jobs, places), places, bases, time.time(), self._makespan), held)

    def places(self, base: BaseDescription) -> tuple[ActorView, ...]:
        """Every place with what is known of it, for a question about one base model."""
        return tuple(self._places({base.ref: base}, {}))

    def _place_of(self, job: JobRecord) -> str | None:
        member = self._fleet.members.get(job.actor or "")
        return member.slot.id if member else None

    def adapter_bytes(self, job: JobRecord, base: BaseDescription) -> int:
        """Bytes of a job's adapter on its actor, as plans count them."""
        need = self._need(job.spec, base)
        return scheduling_view(job.id, job.spec, base, job.progress, cap=self._cap(), need=need).adapter_bytes

    def _cap(self) -> int:
        return micro_batch_cap(slot.device for slot in self._fleet.slots.values())

    def _job_view(
        self,
        job: JobRecord,
        base: BaseDescription,
        progress: Mapping[str, Any],
        place: str | None,
        cap: int,
        *,
        movable: bool,
    ) -> JobView:
        """A job as the scheduler sees it; the very same value as long as nothing of it changes."""
        source = (job, progress, base, place, cap, movable)
        known = self._views.get(job.id)
        if known is not None and known[0] == source:
            return known[2]
        counters = tuple(progress.get(name) for name in ("step", "total_steps", "longest", "tokens_per_step"))
        started = job.attempt > 0 or bool(job.progress)
        marks = (base, counters, place, cap, movable, job.wish, job.queued_at, started)
        if known is not None and known[1] == marks:
            self._views[job.id] = (source, marks, known[2])
            return known[2]
        size, need = self._size(job.id, job.spec), self._need(job.spec, base)
        view = replace(
            scheduling_view(job.id, job.spec, base, progress, size, cap=cap, need=need),
            arrival=job.seq,
            submitted_at=job.submitted_at,
            queued_at=job.queued_at,
            actor=place,
            movable=movable,
            leaving=place is not None and job.wish is not None,
            returns=job.wish in (None, "yield"),
            started=started,
        )
        self._views[job.id] = (source, marks, view)
        return view

    def _need(self, spec: JobSpec, base: BaseDescription) -> AdapterNeed:
        key = (base.ref, spec.lora.model_dump_json())
        known = self._needs.get(key)
        if known is None or known[0] is not base:
            known = self._needs[key] = (base, AdapterNeed.of(spec, base))
        return known[1]

    def _size(self, job_id: str, spec: JobSpec) -> DataSize | None:
        if job_id not in self._sizes:
            self._sizes[job_id] = guess_size(spec.dataset)
        return self._sizes[job_id]

    def _forget(self, alive: Sequence[JobView]) -> None:
        """Drop what is kept of jobs that are over, now and then."""
        if len(self._sizes) > 2 * (len(alive) + 100):
            keep = {job.id for job in alive}
            self._sizes = {job_id: size for job_id, size in self._sizes.items() if job_id in keep}
            self._views = {job_id: view for job_id, view in self._views.items() if job_id in keep}
            self._needs.clear()

    def _places(self, bases: Mapping[str, BaseDescription], unsure: Mapping[str, str]) -> Iterator[ActorView]:
        """Places with what was measured of them; blocked where nobody knows what is on them."""
        reports = {slot_id: member.report for slot_id, member in self._fleet.by_place().items()}
        places = [(place, self._fleet.slots[place.id], reports.get(place.id)) for place in self._fleet.views()]
        for place in with_models(places, self._profiles, bases):
            if place.id in unsure:
                yield replace(place, state=ActorState.BLOCKED, reason=unsure[place.id])
            else:
                yield place
