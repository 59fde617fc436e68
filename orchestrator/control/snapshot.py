"""The cluster at one moment, as the scheduler sees it: made of the job table, the reports, and what was learned."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.errors import LorayError
from orchestrator.cluster.fleet import Fleet
from orchestrator.control.job_needs import AdapterNeed, before_its_rungs, scheduling_view
from orchestrator.jobs.job import JobSpec
from orchestrator.jobs.losses import tried_alone
from orchestrator.jobs.states import JobState
from orchestrator.knowledge.base_catalog import BaseCatalog
from orchestrator.knowledge.data_size import DataSize, guess_size, guess_sizes
from orchestrator.knowledge.place_models import with_models
from orchestrator.knowledge.profiles import Profiles
from orchestrator.owners.limits import OwnerLimits
from orchestrator.scheduler.oversized_jobs import fit_oversized_jobs
from orchestrator.scheduler.view import ActorState, ActorView, ClusterView, JobView
from orchestrator.store.records import JobRecord, Wish

if TYPE_CHECKING:
    from orchestrator.store.store import Store

_SOON_SECONDS = 15.0  # until a next try for which a place is planned: far less than another base model takes to load


@dataclass(frozen=True)
class Snapshot:
    """The cluster at one moment.

    Attributes:
        view: What the scheduler decides on.
        held: Queued jobs that do not start, and why: their base models are not described yet, or they wait for their
            next try. Those that try again soon are in the view, where a place is planned for them.
    """

    view: ClusterView
    held: Mapping[str, str]

    def differs(self, other: Snapshot) -> bool:
        """Whether more than progress and time lies between two of them. A job that waits is mostly the same value."""
        jobs, others = self.view.jobs, other.view.jobs
        actors = zip(self.view.actors, other.view.actors, strict=False)
        return (
            (len(jobs), len(self.view.actors)) != (len(others), len(other.view.actors))
            or self.held.keys() != other.held.keys()
            or any(_job_facts(a) != _job_facts(b) for a, b in zip(jobs, others, strict=True) if a is not b)
            or any(_place_facts(a) != _place_facts(b) for a, b in actors)
        )

    def events(self, last: Snapshot) -> Events | None:
        """What happened since an earlier one, if that was arrivals and ends alone; None if it was more than that.

        A job that needs less than before, or may be moved or leaves, holds its place as it did.
        """
        if self.held.keys() != last.held.keys() or len(self.view.actors) != len(last.view.actors):
            return None
        if any(_place_facts(a) != _place_facts(b) for a, b in zip(self.view.actors, last.view.actors, strict=True)):
            return None
        before = {job.id: job for job in last.view.jobs}
        arrived, gone, started = [], [], {}
        for job in self.view.jobs:
            old = before.pop(job.id, None)
            if old is job:
                continue
            if old is not None and (job.priority != old.priority or job.alone != old.alone or _has_grown(job, old)):
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
    """What happened between two snapshots.

    Attributes:
        arrived: Jobs that have joined the queue.
        gone: Ids of those that are over, paused, or off their actors; the last are in `arrived` too.
        started: Job -> the place that it was given to.
    """

    arrived: tuple[JobView, ...]
    gone: tuple[str, ...]
    started: Mapping[str, str]


def _job_facts(job: JobView) -> object:
    return job.id, job.actor, job.movable, job.leaving, job.steps_total, job.alone


def _has_grown(job: JobView, old: JobView) -> bool:
    """Whether it takes more of any place than before."""
    devices = ("", *job.sizes)
    return any(
        now > then for device in devices for now, then in zip(job.size_on(device), old.size_on(device), strict=True)
    )


def _place_facts(actor: ActorView) -> object:
    return actor.id, actor.state, actor.base_model, actor.memory_limit, actor.reason, actor.shape


@dataclass(frozen=True)
class _BuiltView:
    """A job's view, and what it was made from.

    Attributes:
        source: All that was at hand when it was last asked for.
        facts: What of that the view depends on.
    """

    source: object
    facts: object
    view: JobView


@dataclass(frozen=True)
class _CountedNeed:
    """What an adapter needs on a base model."""

    base: BaseDescription
    need: AdapterNeed


class SnapshotBuilder:
    """Takes the snapshots of one orchestrator."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        bases: BaseCatalog,
        profiles: Profiles,
        limits: OwnerLimits,
        makespan: float = 0.0,
    ) -> None:
        self._limits, self._makespan = limits, makespan
        self._store, self._fleet, self._bases, self._profiles = store, fleet, bases, profiles
        self._sizes: dict[str, DataSize | None] = {}
        self._needs: dict[tuple[str, str], _CountedNeed] = {}  # by base and adapter settings
        self._views: dict[str, _BuiltView] = {}  # by job

    async def prepare(self) -> None:
        """Read what the next snapshot needs of files and tables, in threads: it then reads none."""
        jobs = self._store.jobs([JobState.QUEUED, JobState.RUNNING])
        new = {job.id: job.spec.dataset for job in jobs if job.id not in self._sizes}
        if new:
            self._sizes |= await asyncio.to_thread(guess_sizes, new)
        await self._limits.refresh()

    def build(self, live: Mapping[str, Mapping[str, Any]], movable: Callable[[JobRecord, float], bool]) -> Snapshot:
        """The cluster now.

        Args:
            live: Progress by job, newer than what the store has.
            movable: Whether a running job may be taken off its actor now, if the latest one came then (Unix time).
        """
        bases: dict[str, BaseDescription] = {}
        jobs: list[JobView] = []
        held: dict[str, str] = {}
        devices = self._devices()
        unsure: dict[str, str] = {}  # place -> why it is not known how much memory is free there
        described: dict[str, BaseDescription | str] = {}
        records = self._store.jobs([JobState.QUEUED, JobState.RUNNING])
        held |= self._limits.held(records)
        fair = self._limits.steps(records)
        last_arrival, now = max((job.submitted_at for job in records), default=0.0), time.time()
        for job in records:
            place, ref = self._place_of(job), job.spec.base_model
            if job.id in held:
                continue
            why = job.losses.waits(now) if job.state is JobState.QUEUED else None
            if why:
                held[job.id] = why
                if job.losses.waits(now + _SOON_SECONDS):
                    continue
            if job.state is JobState.RUNNING and place is None:
                continue  # the next tick sees that its actor is gone
            if ref not in described:
                described[ref] = self._bases.known(ref)
            base = described[ref]
            try:
                if isinstance(base, str):
                    raise LorayError(base)
                can_move = place is not None and movable(job, last_arrival)
                progress = live.get(job.id, job.progress)
                leaving = bool(why) or (place is not None and job.wish is not None)
                jobs.append(
                    self._job_view(job, base, progress, place, devices, fair, movable=can_move, leaving=leaving)
                )
                bases[ref] = base
            except LorayError as error:
                (held if place is None else unsure)[place or job.id] = str(error)
        self._forget_all_but(jobs)
        places = tuple(self._place_views(bases, unsure))
        view = ClusterView(fit_oversized_jobs(jobs, places, bases), places, bases, now, self._makespan)
        return Snapshot(view, held)

    def places(self, base: BaseDescription) -> tuple[ActorView, ...]:
        """Every place with what was learned of it, for a question about one base model."""
        return tuple(self._place_views({base.ref: base}, {}))

    def _place_of(self, job: JobRecord) -> str | None:
        member = self._fleet.members.get(job.actor or "")
        return member.place.id if member else None

    def adapter_bytes(self, job: JobRecord, base: BaseDescription, device: str) -> int:
        """Bytes of a job's adapter on an actor with such a device, as plans count them."""
        need = self._need(job.spec, base)
        return scheduling_view(job.id, job.spec, base, job.progress, devices=(device,), need=need).adapter_bytes

    def _devices(self) -> frozenset[str]:
        return frozenset(place.device for place in self._fleet.places.values())

    def _job_view(
        self,
        job: JobRecord,
        base: BaseDescription,
        progress: Mapping[str, Any],
        place: str | None,
        devices: frozenset[str],
        fair: Mapping[str, int],
        *,
        movable: bool,
        leaving: bool,
    ) -> JobView:
        """A job as the scheduler sees it; the very same value as long as nothing of it changes."""
        priority = job.spec.queue.priority + fair.get(job.owner, 0)
        source = (job, progress, base, place, devices, movable, leaving, priority)
        last = self._views.get(job.id)
        if last is not None and last.source == source:
            return last.view
        counters = tuple(progress.get(name) for name in ("step", "total_steps", "longest", "tokens_per_step"))
        started = job.attempt > 0 or bool(job.progress)
        alone = tried_alone(job.losses, job.spec.queue.max_retries)
        facts = (
            base,
            counters,
            place,
            devices,
            movable,
            leaving,
            job.wish,
            job.queued_at,
            started,
            job.losses,
            priority,
        )
        if last is not None and last.facts == facts:
            self._views[job.id] = replace(last, source=source)
            return last.view
        size, need = self._size(job.id, job.spec), self._need(job.spec, base)
        needed = scheduling_view(job.id, job.spec, base, progress, size, devices=devices, need=need)
        view = replace(
            before_its_rungs(needed, job.spec),
            priority=priority,
            arrival=job.seq,
            submitted_at=job.submitted_at,
            queued_at=job.queued_at,
            actor=place,
            movable=movable and not alone,  # a trial goes on until the job is cleared or found out
            leaving=leaving,
            returns=job.wish in (None, Wish.YIELD),
            started=started,
            alone=alone,
        )
        self._views[job.id] = _BuiltView(source, facts, view)
        return view

    def _need(self, spec: JobSpec, base: BaseDescription) -> AdapterNeed:
        key = (base.ref, spec.lora.model_dump_json())
        counted = self._needs.get(key)
        if counted is None or counted.base is not base:
            counted = self._needs[key] = _CountedNeed(base, AdapterNeed.of(spec, base))
        return counted.need

    def _size(self, job_id: str, spec: JobSpec) -> DataSize | None:
        if job_id not in self._sizes:
            self._sizes[job_id] = guess_size(spec.dataset)
        return self._sizes[job_id]

    def _forget_all_but(self, alive: Sequence[JobView]) -> None:
        """Drop what is kept of jobs that are over, now and then."""
        if len(self._sizes) > 2 * (len(alive) + 100):
            keep = {job.id for job in alive}
            self._sizes = {job_id: size for job_id, size in self._sizes.items() if job_id in keep}
            self._views = {job_id: view for job_id, view in self._views.items() if job_id in keep}
            self._needs.clear()

    def _place_views(self, bases: Mapping[str, BaseDescription], unsure: Mapping[str, str]) -> Iterator[ActorView]:
        """Places with what was measured of them; blocked where it is not known what the jobs there need."""
        reports = {place_id: member.report for place_id, member in self._fleet.by_place().items()}
        views = [(view, self._fleet.places[view.id], reports.get(view.id)) for view in self._fleet.views()]
        for view in with_models(views, self._profiles, bases):
            if view.id in unsure:
                yield replace(view, state=ActorState.BLOCKED, reason=unsure[view.id])
            else:
                yield view
