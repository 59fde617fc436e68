"""One look at the cluster, as the scheduler sees it: built from the job table, the reports, and what was learned."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpu_actor import footprint
from gpu_actor.adapter_shapes import adapter_activation_bytes, adapter_bytes
from gpu_actor.config import DatasetConfig
from gpu_actor.errors import LorayError
from gpu_actor.footprint import MICRO_BATCH_CAP, BaseDescription
from gpu_actor.report import ActorReport
from orchestrator.bases import BaseCatalog
from orchestrator.data_size import DataSize, guess_size
from orchestrator.fleet import Fleet
from orchestrator.job import JobSpec, JobState
from orchestrator.pressed import made_to_fit
from orchestrator.profiles import Profiles, idle_memory
from orchestrator.scheduler.estimate import device_kind, prior_memory, prior_speed
from orchestrator.scheduler.view import UNKNOWN_STEPS, ActorState, ActorView, ClusterView, JobView
from orchestrator.slots import Slot
from orchestrator.store import JobRecord, Store

_LOAD_SECONDS, _LOAD_BYTES_PER_SECOND = 8.0, 5e8  # until loading was measured
_UNKNOWN_SHARE = 0.5  # of cutoff_len, for samples that nobody has counted


@dataclass(frozen=True)
class Look:
    """A look at the cluster.

    Attributes:
        view: What the scheduler decides on.
        held: Queued jobs that are left out of it, and why: nobody knows their base model yet.
    """

    view: ClusterView
    held: Mapping[str, str]

    @property
    def key(self) -> object:
        """Equal for two looks between which nothing happened but progress and time."""
        jobs = tuple((job.id, job.actor, job.movable, job.leaving, job.steps_total) for job in self.view.jobs)
        actors = tuple((a.id, a.state, a.base_model, a.memory_limit, a.reason, a.shape) for a in self.view.actors)
        return jobs, actors, tuple(sorted(self.held))


@dataclass(frozen=True)
class AdapterNeed:
    """What an adapter takes of an actor's memory: a matter of its settings and its base model alone.

    Attributes:
        bytes: Weights, gradients, moments, and what it keeps frozen.
        token_bytes: What its own part of the layers keeps of each token for the backward.
    """

    bytes: int
    token_bytes: int

    @classmethod
    def of(cls, spec: JobSpec, base: BaseDescription) -> AdapterNeed:
        """Walks through all layers of the base model, which takes a while.

        Raises:
            LorayError: The adapter does not go with the base model.
        """
        return cls(adapter_bytes(base, spec.lora), adapter_activation_bytes(base, spec.lora, 1))


class Lookout:
    """Builds the looks of one orchestrator."""

    def __init__(
        self, store: Store, fleet: Fleet, bases: BaseCatalog, profiles: Profiles, makespan: float = 0.0
    ) -> None:
        self._makespan = makespan
        self._store, self._fleet, self._bases, self._profiles = store, fleet, bases, profiles
        self._sizes: dict[str, DataSize | None] = {}
        self._needs: dict[tuple[str, str], tuple[BaseDescription, AdapterNeed]] = {}  # by base and adapter settings
        self._views: dict[str, tuple[BaseDescription, object, JobView]] = {}  # with what each was made from

    async def prepare(self) -> None:
        """Look into the data files of jobs that are new, in a thread: the next look then reads none."""
        new = [job_id for job_id in self._store.ids([JobState.QUEUED, JobState.RUNNING]) if job_id not in self._sizes]
        if new:
            datasets = {job_id: self._store.get(job_id).spec.dataset for job_id in new}
            self._sizes |= await asyncio.to_thread(_guess_sizes, datasets)

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
        self._forget(job.id for job in jobs)
        places = tuple(self._learned(place, bases, unsure) for place in self._fleet.views())
        return Look(ClusterView(made_to_fit(jobs, places), places, bases, time.time(), self._makespan), held)

    def places(self, base: BaseDescription) -> tuple[ActorView, ...]:
        """Every place with what is known of it, for a question about one base model."""
        return tuple(self._learned(place, {base.ref: base}, {}) for place in self._fleet.views())

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
        counters = tuple(progress.get(name) for name in ("step", "total_steps", "longest", "tokens_per_step"))
        started = job.attempt > 0 or bool(job.progress)
        marks = (counters, place, cap, movable, job.wish, job.queued_at, started)
        known = self._views.get(job.id)
        if known is not None and known[0] is base and known[1] == marks:
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
        self._views[job.id] = (base, marks, view)
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

    def _forget(self, alive: Iterable[str]) -> None:
        """Drop what is kept of jobs that are over, now and then."""
        if len(self._sizes) > 2 * (len(keep := set(alive)) + 100):
            self._sizes = {job_id: size for job_id, size in self._sizes.items() if job_id in keep}
            self._views = {job_id: view for job_id, view in self._views.items() if job_id in keep}
            self._needs.clear()

    def _learned(self, place: ActorView, bases: Mapping[str, BaseDescription], unsure: Mapping[str, str]) -> ActorView:
        """A place with what was measured of it; blocked where nobody knows what is on it."""
        member = self._fleet.at(place.id)
        place = with_profiles(
            place, self._fleet.slots[place.id], self._profiles, bases, member.report if member else None
        )
        if place.id in unsure:
            return replace(place, state=ActorState.BLOCKED, reason=unsure[place.id])
        return place


def _guess_sizes(datasets: Mapping[str, DatasetConfig]) -> dict[str, DataSize | None]:
    """Sizes of some jobs' data; jobs of a grid, which share them, at one go."""
    sizes: dict[str, DataSize | None] = {}
    found: dict[str, DataSize | None] = {}
    for job_id, dataset in datasets.items():
        key = dataset.model_dump_json()
        if key not in sizes:
            sizes[key] = guess_size(dataset)
        found[job_id] = sizes[key]
    return found


def with_profiles(
    place: ActorView,
    slot: Slot,
    profiles: Profiles,
    bases: Mapping[str, BaseDescription],
    report: ActorReport | None = None,
) -> ActorView:
    """A place with what was measured of it.

    Args:
        place: As the cluster file and Ray have it.
        slot: Where it is.
        profiles: What was learned.
        bases: The base models in question.
        report: The latest of the actor there.
    """
    found = profiles.of_place(slot)
    memories = {ref: profile.memory_model(slot, place.memory_limit) for ref, profile in found.items()}
    hosted = bases.get(place.base_model or "")
    if hosted and report and report.memory_idle and hosted.ref not in memories:
        memories[hosted.ref] = idle_memory(slot, hosted, report.memory_idle)
    memories |= {ref: prior_memory(base, slot.shape) for ref, base in bases.items() if ref not in memories}
    loads = {ref: _LOAD_SECONDS + 4 * base.parameters / _LOAD_BYTES_PER_SECOND for ref, base in bases.items()}
    loads |= {ref: profile.load_seconds for ref, profile in found.items() if profile.load_seconds is not None}
    swaps = {ref: profile.swap_seconds for ref, profile in found.items() if profile.swap_seconds is not None}
    budget = report.token_budget if report else 0
    return replace(
        place,
        shape=replace(place.shape, token_budget=budget or place.shape.token_budget),
        speeds={ref: prior_speed(base, slot.shape) for ref, base in bases.items() if ref not in found}
        | {ref: profile.speed.model for ref, profile in found.items()},
        memories=memories,
        loads=loads,
        swap_seconds=swaps.get(place.base_model or "", max(swaps.values(), default=place.swap_seconds)),
    )


def micro_batch_cap(devices: Iterable[str]) -> int:
    """Most tokens of a micro-batch on the roomiest of some devices; without any, on any device there is."""
    return max((MICRO_BATCH_CAP[device_kind(device)] for device in devices), default=max(MICRO_BATCH_CAP.values()))


def scheduling_view(
    job_id: str,
    spec: JobSpec,
    base: BaseDescription,
    progress: Mapping[str, Any] | None = None,
    size: DataSize | None = None,
    *,
    cap: int | None = None,
    need: AdapterNeed | None = None,
) -> JobView:
    """A queued job as the scheduler sees it.

    Args:
        job_id: Its id.
        spec: What it is.
        base: Its base model.
        progress: Counters of its reports, if it has trained.
        size: What its data file looks like.
        cap: Most tokens of a micro-batch where it may run (`micro_batch_cap`); None: on any device there is.
        need: `AdapterNeed.of` of the job, if it is at hand.

    Raises:
        LorayError: Its adapter does not go with the base model.
    """
    progress = progress or {}
    need = need or AdapterNeed.of(spec, base)
    training = spec.training
    longest = progress.get("longest") or None
    worst = footprint.worst_micro_batch_tokens(training, cap or micro_batch_cap(()), longest)
    samples = training.per_device_train_batch_size * training.gradient_accumulation_steps
    if size is not None:
        samples = min(samples, size.samples)
    mean = min(size.mean_tokens, training.cutoff_len) if size else training.cutoff_len * _UNKNOWN_SHARE
    total = progress.get("total_steps") or _guess_steps(spec, size)
    return JobView(
        id=job_id,
        base_model=spec.base_model,
        priority=spec.queue.priority,
        arrival=0,
        adapter_bytes=need.bytes + need.token_bytes * worst,
        worst_tokens=worst,
        steps_left=max(1, total - progress.get("step", 0)),
        steps_total=total,
        tokens_per_step=progress.get("tokens_per_step") or samples * mean,
    )


def _guess_steps(spec: JobSpec, size: DataSize | None) -> int:
    if spec.training.max_steps is not None:
        return spec.training.max_steps
    return spec.training.total_steps(size.samples) if size else UNKNOWN_STEPS
