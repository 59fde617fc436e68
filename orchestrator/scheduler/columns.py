"""The jobs and the places of one view as columns of numbers, and the room that is left on each place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.scheduler import estimate
from orchestrator.scheduler.room import Floats, Ints, Mask, PlaceMemory, Room
from orchestrator.scheduler.view import ActorState, ActorView, ClusterView, JobRow, JobView, MemoryModel, SpeedModel

_HOSTING = (ActorState.READY, ActorState.STARTING)
_NO_MEMORY = MemoryModel(0.0, 0.0)  # of a base model that no job names
_NO_SPEED = SpeedModel(0.0, 0.0, 0.0)


class Models:
    """Speed and memory of every place with every base model: measured, or guessed once."""

    def __init__(self, view: ClusterView) -> None:
        self._bases = view.bases
        self._speeds: dict[object, SpeedModel] = {}
        self._memories: dict[object, MemoryModel] = {}

    def speed(self, actor: ActorView, base: str) -> SpeedModel:
        """How fast a place trains on a base model."""
        measured = actor.speeds.get(base)
        if measured is not None:
            return measured
        key = (base, actor.shape)
        if key not in self._speeds:
            self._speeds[key] = estimate.prior_speed(self._bases[base], actor.shape)
        return self._speeds[key]

    def memory(self, actor: ActorView, base: str) -> MemoryModel:
        """The memory that a base model takes on a place."""
        return actor.memories.get(base) or self.guess(actor, base)

    def guess(self, actor: ActorView, base: str) -> MemoryModel:
        """The memory that a described base model takes on a place, as guessed from shapes alone."""
        key = (base, actor.shape)
        if key not in self._memories:
            self._memories[key] = estimate.prior_memory(self._bases[base], actor.shape)
        return self._memories[key]

    def described(self, base: str) -> bool:
        """Whether a guess can be made."""
        return base in self._bases


class _AverageHost(NamedTuple):
    """Speed and token budget, each the mean over the places of a base model."""

    step_seconds: float
    token_seconds: float
    adapter_seconds: float
    token_budget: float


_ROW_TYPE = np.dtype([(name, bool if name in ("movable", "leaving") else np.float64) for name in JobRow._fields])


def _table(jobs: Sequence[JobView]) -> dict[str, NDArray[Any]]:
    """The columns of `JobRow` over some jobs, by name."""
    rows = np.fromiter((job.row for job in jobs), _ROW_TYPE, len(jobs))
    return {name: rows[name].copy() for name in JobRow._fields}


class Jobs:
    """Columns over the jobs of a view, in the order of arrival; those that leave for good are none of them.

    Attributes:
        at: Index of the place where a job is attached; -1 for none, and for one that is leaving.
        leaving: Whether it is planned as if it were in the queue, and is not there yet.
        base: Index of its base model in `bases`.
        left, total: Optimizer steps still to do, and all.
        added: v, the seconds that one of its steps adds to a shared step, on the average place of its base model.
        shared: a, the fixed seconds of a shared step there.
        class_weight: Of its class.
        weight: The same, and what a policy makes of it.
    """

    def __init__(self, view: ClusterView, places: Sequence[ActorView], bases: Sequence[str], models: Models) -> None:
        staying = (job for job in view.jobs if job.returns or not job.leaving)
        views = sorted(staying, key=lambda job: (job.arrival, job.id))
        self.views, self.count = views, len(views)
        where = {place.id: index for index, place in enumerate(places)}
        number = {ref: index for index, ref in enumerate(bases)}
        at = [-1 if job.actor is None or job.leaving else where.get(job.actor, -2) for job in views]
        self.at = np.maximum(np.array(at, np.int64), -1)
        self.lost = np.array(at, np.int64) == -2
        self.base = np.array([number[job.base_model] for job in views], np.int64)
        table = _table(views)
        self.bytes, self.worst, self.tokens = table["bytes"], table["worst"], table["tokens"]
        self.left, self.total = table["left"], table["total"]
        self.priority = table["priority"]
        self.class_weight, self.weight = table["weight"], table["weight"].copy()
        self.movable, self.leaving = table["movable"], table["leaving"]
        self.age = view.now - table["submitted_at"]
        self.waited = np.where(self.leaving, 0.0, view.now - table["queued_at"])
        self.added, self.shared = np.zeros(self.count), np.zeros(self.count)
        self._average_hosts: dict[int, _AverageHost] = {}  # of each base model
        for index, ref in enumerate(bases):
            self._average_host(index, ref, places, models)

    def _average_host(self, index: int, ref: str, places: Sequence[ActorView], models: Models) -> None:
        """Find the average of the places that host a base model, or else of those that may, and charge its jobs."""
        hosts = [place for place in places if place.base_model == ref and place.state in _HOSTING]
        hosts = hosts or [place for place in places if place.pinned in (None, ref)]
        jobs = np.flatnonzero(self.base == index)
        if not hosts or not len(jobs):
            return
        distinct = {(id(place.speeds.get(ref)), place.shape): place for place in hosts}.values()
        speeds = [models.speed(place, ref) for place in distinct]
        self._average_hosts[index] = _AverageHost(
            float(np.mean([speed.step_seconds for speed in speeds])),
            float(np.mean([speed.token_seconds for speed in speeds])),
            float(np.mean([speed.adapter_seconds for speed in speeds])),
            float(np.mean([place.shape.token_budget for place in distinct])),
        )
        self._set_seconds(index, jobs)

    def _set_seconds(self, index: int, jobs: Ints) -> None:
        """What a step costs with some jobs of a base model, on the average place."""
        host, tokens = self._average_hosts[index], self.tokens[jobs]
        self.shared[jobs] = host.step_seconds
        self.added[jobs] = (
            host.token_seconds * tokens
            + host.adapter_seconds
            + np.maximum(0.0, np.ceil(tokens / host.token_budget) - 1) * host.step_seconds
        )

    def append(self, views: Sequence[JobView], bases: Sequence[str], now: float) -> None:
        """Rows for jobs that have come since, attached nowhere, of base models that have a job here already."""
        first, more = self.count, len(views)
        self.views.extend(views)
        self.count += more
        table = _table(views)
        base = np.array([bases.index(job.base_model) for job in views], np.int64)
        for name in ("bytes", "worst", "tokens", "left", "total", "priority", "weight"):
            setattr(self, name, np.append(getattr(self, name), table[name]))
        self.movable, self.leaving, self.lost = (
            np.append(column, np.zeros(more, bool)) for column in (self.movable, self.leaving, self.lost)
        )
        self.age = np.append(self.age, now - table["submitted_at"])
        self.waited = np.append(self.waited, now - table["queued_at"])
        self.at, self.base = np.append(self.at, np.full(more, -1, np.int64)), np.append(self.base, base)
        self.added, self.shared = (np.append(column, np.zeros(more)) for column in (self.added, self.shared))
        for index in np.unique(base).tolist():
            if index in self._average_hosts:
                self._set_seconds(index, first + np.flatnonzero(base == index))

    def fit_alone(self, memories: Iterable[PlaceMemory]) -> Mask:
        """Which of the jobs fit alone on a place with any of some memories."""
        mask = np.zeros(self.count, bool)
        for memory in memories:
            mask |= memory.holds_alone(self.bytes, self.worst)
        return mask


class Places:
    """Columns over all places, and what is planned for each of them.

    Attributes:
        base: Index of the base model there; -1 where there is none, or one that no job names.
    """

    def __init__(self, actors: Sequence[ActorView], bases: Sequence[str], models: Models, jobs: Jobs) -> None:
        self.views, self.count = actors, len(actors)
        self._bases, self._models, self._jobs = bases, models, jobs
        number = {ref: index for index, ref in enumerate(bases)}
        self.states = [actor.state for actor in actors]
        self.base = np.array([number.get(actor.base_model or "", -1) for actor in actors], np.int64)
        self.ready = np.array([actor.state is ActorState.READY for actor in actors], bool)
        self.starting = np.array([actor.state is ActorState.STARTING for actor in actors], bool)
        self.swap = np.array([actor.swap_seconds for actor in actors], np.float64)
        self.load = np.array([actor.seconds_to_load(actor.base_model) for actor in actors], np.float64)
        self.budget = np.array([actor.shape.token_budget for actor in actors], np.float64)
        self.kept_for = np.full(self.count, -1, np.int64)
        self.closed = np.zeros(self.count, bool)  # planned for another base model, and to be emptied first
        self.attached: list[list[int]] = [[] for _ in actors]
        self.leaving: list[list[JobView]] = [[] for _ in actors]  # jobs that were told to leave and are still there
        self.pending = np.zeros(self.count, np.int64)  # attached jobs of which nobody has decided yet
        self.planned: list[list[int]] = [[] for _ in actors]
        memories = [self.memory(p, actor.base_model) for p, actor in enumerate(actors)]
        self.room = Room(
            np.array([memory.limit for memory in memories], np.float64),
            np.array([memory.fixed for memory in memories], np.float64),
            np.array([memory.per_token for memory in memories], np.float64),
            np.array([memory.cap for memory in memories], np.float64),
        )
        speeds = [self._speed(p, actor.base_model) for p, actor in enumerate(actors)]
        self._step_seconds = np.array([speed.step_seconds for speed in speeds], np.float64)
        self._token_seconds = np.array([speed.token_seconds for speed in speeds], np.float64)
        self._adapter_seconds = np.array([speed.adapter_seconds for speed in speeds], np.float64)
        self.jobs_on = np.zeros(self.count, np.int64)
        self.vacant = int((self.ready).sum())  # ready places with nobody planned or still to be decided of
        self.weight_on = np.zeros(self.count)
        self._sharers = np.zeros(self.count, np.int64)
        self._sharing = np.zeros((3, self.count, 4))  # steps left, weight, seconds added; of each job that shares

    def memory(self, place: int, base: str | None) -> PlaceMemory:
        """The memory of a place with a base model; with one that no job names it counts as none."""
        if base is None or base not in self._bases:
            return self._memory_of(place, _NO_MEMORY)
        return self._memory_of(place, self._models.memory(self.views[place], base))

    def guessed_memories(self, place: int, base: str) -> list[PlaceMemory]:
        """The same by what shapes alone tell; nothing for a base model that nobody has described."""
        models = self._models
        return [self._memory_of(place, models.guess(self.views[place], base))] if models.described(base) else []

    def _memory_of(self, place: int, model: MemoryModel) -> PlaceMemory:
        limit, cap = self.views[place].memory_limit, model.token_cap
        return PlaceMemory(
            math.inf if limit is None else float(limit),
            float(model.fixed_bytes),
            float(model.bytes_per_token),
            -1.0 if cap is None else float(cap),
        )

    def _speed(self, place: int, base: str | None) -> SpeedModel:
        if base is None or base not in self._bases:
            return _NO_SPEED
        return self._models.speed(self.views[place], base)

    # -- who may be where ----------------------------------------------------------------------------------------

    def hosts(self, base: int) -> Mask:
        """Places that jobs of a base model can count on."""
        mask: Mask = (self.base == base) & (self.ready | self.starting)
        return mask

    def may_host(self, place: int, base: str) -> bool:
        """By the cluster file."""
        return self.views[place].pinned in (None, base)

    def can_load(self, place: int, base: str) -> bool:
        """Whether it may host a base model and has not just failed to load it."""
        return self.may_host(place, base) and base not in self.views[place].barred

    def idle(self, place: int) -> bool:
        """Whether its base model may change now: nobody is attached or planned there."""
        return self.stable(place) and self.empty(place) and not self.planned[place]

    def empty(self, place: int) -> bool:
        """Whether no job is there now."""
        return not self.attached[place] and not self.leaving[place]

    def stable(self, place: int) -> bool:
        """Whether nothing is under way there that its base model would have to wait for."""
        return self.states[place] in (ActorState.EMPTY, ActorState.READY)

    def alone(self, place: int, job: JobView) -> float:
        """Bytes of a place with one job only, its base model included."""
        memory = self.memory(place, job.base_model)
        return memory.fixed + job.adapter_bytes + memory.per_token * max(memory.cap, job.worst_tokens)

    def limit(self, place: int) -> float:
        """Bytes that may be used; infinite where nobody knows."""
        return float(self.room.limits[place])

    def fits_alone(self, place: int, job: JobView) -> bool:
        """Whether a job fits onto a place that has nothing else."""
        return self.alone(place, job) <= self.limit(place)

    def host(self, place: int, base: str) -> None:
        """Plan another base model for a place where no job is planned."""
        self.base[place] = self._bases.index(base)
        self.load[place] = self.views[place].seconds_to_load(base)
        speed = self._speed(place, base)
        self._step_seconds[place] = speed.step_seconds
        self._token_seconds[place], self._adapter_seconds[place] = speed.token_seconds, speed.adapter_seconds
        self.states[place] = ActorState.STARTING
        self.vacant -= int(self.ready[place])
        self.ready[place], self.starting[place] = False, True
        self.room.rebase(place, self.memory(place, base))

    # -- planning ------------------------------------------------------------------------------------------------

    def add(self, place: int, job: int) -> None:
        """Plan a job for a place."""
        self.hold(place, job)
        self.share(place, job)

    def hold(self, place: int, job: int) -> None:
        """Plan a job for a place, and let it count for nobody's sharing yet."""
        jobs = self._jobs
        self.planned[place].append(job)
        self.room.add(place, jobs.bytes[job], jobs.worst[job])
        self.vacant -= int(not self.jobs_on[place] and not self.pending[place] and self.ready[place])
        self.jobs_on[place] += 1

    def share(self, place: int, job: int) -> None:
        """Count a job that is held for those whose sharing is weighed from here on."""
        jobs, slot = self._jobs, int(self._sharers[place])
        if slot == self._sharing.shape[2]:
            self._sharing = np.concatenate([self._sharing, np.zeros_like(self._sharing)], axis=2)
        self._sharing[:, place, slot] = jobs.left[job], jobs.weight[job], jobs.added[job]
        self._sharers[place] += 1
        self.weight_on[place] += jobs.weight[job]

    def remove(self, place: int, job: int) -> None:
        """A job that was planned for a place is gone from it; nobody there is still to be decided of."""
        there = self.planned[place]
        there.remove(job)
        self.planned[place] = []
        self.room.clear(place)
        self.vacant += int(self.ready[place])
        self.jobs_on[place], self.weight_on[place] = 0, 0.0
        self._sharers[place], self._sharing[:, place] = 0, 0.0
        for other in there:
            self.add(place, other)

    def wait(self, place: int, change: int) -> None:
        """One attached job more, or fewer, of which nobody has decided yet. On a closed place nobody stays."""
        if self.closed[place]:
            return
        before = self.pending[place]
        self.pending[place] += change
        if self.ready[place] and not self.jobs_on[place] and bool(before) != bool(self.pending[place]):
            self.vacant += 1 if before else -1

    def present(self) -> Room:
        """The room while everything that is attached now is still there, and nothing else."""
        room = self.room.copy()
        room.adapters[:] = 0.0
        room.tokens = np.where(room.capped, room.caps, 0.0)
        for place, there in enumerate(self.attached):
            for job in there:
                room.add(place, self._jobs.bytes[job], self._jobs.worst[job])
            for view in self.leaving[place]:
                room.add(place, view.adapter_bytes, view.worst_tokens)
        return room

    def sharing_cost(self, job: int) -> Floats:
        """Weighted seconds that a job costs itself and the jobs that are planned on each place, until it is done.

        Own time alone, and for each neighbour the steps that both do together, each slowed by what the other adds:
        sum over k of min(n_k, n_j) * (w_k v_j + w_j v_k).
        """
        jobs = self._jobs
        left, weight, tokens = jobs.left[job], jobs.weight[job], jobs.tokens[job]
        fixed, further_batches = self._step_seconds, np.maximum(0.0, np.ceil(tokens / self.budget) - 1)
        added = self._token_seconds * tokens + self._adapter_seconds + further_batches * fixed
        n, w, v = self._sharing
        pairs = np.minimum(n, left) * (w * added[:, None] + weight * v)
        cost: Floats = pairs.sum(axis=1) + weight * left * (fixed + added) + weight * self.load * self.starting
        return cost


def unique_bases(view: ClusterView) -> list[str]:
    """Every base model that a job names, sorted. Of others nothing need be known: a place that hosts one has no job."""
    return sorted({job.base_model for job in view.jobs})
