"""The places of one view as columns of numbers, what is planned for each of them, and the room that is left there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from orchestrator.scheduler.job_columns import Jobs, Models
from orchestrator.scheduler.room import Floats, Ints, Mask, PlaceMemory, Room
from orchestrator.scheduler.view import ActorState, ActorView, JobView, MemoryModel, SpeedModel

_NO_MEMORY = MemoryModel(0.0, 0.0)  # of a base model that no job names
_NO_SPEED = SpeedModel(0.0, 0.0, 0.0)
_CLEARLY = 1.05  # times the seconds of a step on the fastest place, from which a place is a slow one


class Places:
    """Columns over all places, and what is planned for each of them.

    Attributes:
        base: Index of the base model there; -1 where there is none, or one that no job names.
        size: Which of the sizes of a job count there: a row of `Jobs.bytes`.
    """

    def __init__(self, actors: Sequence[ActorView], bases: Sequence[str], models: Models, jobs: Jobs) -> None:
        self.views, self.count = actors, len(actors)
        self._bases, self._models, self._jobs = bases, models, jobs
        number = {ref: index for index, ref in enumerate(bases)}
        self.states = [actor.state for actor in actors]
        self.base = np.array([number.get(actor.base_model or "", -1) for actor in actors], np.int64)
        self.ready = np.array([actor.state is ActorState.READY for actor in actors], bool)
        self.starting = np.array([actor.state is ActorState.STARTING for actor in actors], bool)
        size = {device: number for number, device in enumerate(jobs.devices)}
        self.size = np.array([size[actor.shape.device] for actor in actors], np.int64)
        self._sizes: Ints | int = self.size if len(size) > 1 else 0
        self.swap = np.array([actor.swap_seconds for actor in actors], np.float64)
        self.load = np.array([actor.seconds_to_load(actor.base_model) for actor in actors], np.float64)
        self.budget = np.array([actor.shape.token_budget for actor in actors], np.float64)
        self._kinds: dict[str, list[int]] = {}  # by base model
        self.kept_for = np.full(self.count, -1, np.int64)
        self.solo = np.zeros(self.count, bool)  # with a job that shares no place
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
        speeds = self._speeds = [self._speed(p, actor.base_model) for p, actor in enumerate(actors)]
        self._step_seconds = np.array([speed.step_seconds for speed in speeds], np.float64)
        self._token_seconds = np.array([speed.token_seconds for speed in speeds], np.float64)
        self._adapter_seconds = np.array([speed.adapter_seconds for speed in speeds], np.float64)
        self.jobs_on = np.zeros(self.count, np.int64)
        self.vacant = int((self.ready).sum())  # ready places with nobody planned or still to be decided of
        self.weight_on = np.zeros(self.count)
        self._outpaced = np.zeros(self.count, bool)
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
            int(self.size[place]),
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

    def hosts_at(self, place: int, base: int) -> bool:
        """Whether one place is among them."""
        return bool(self.base[place] == base and (self.ready[place] or self.starting[place]))

    def may_host(self, place: int, base: str) -> bool:
        """By the cluster file."""
        return self.views[place].pinned in (None, base)

    def kinds_that_may_host(self, base: str) -> list[int]:
        """One place of each kind of memory with a base model, by the cluster file."""
        if base not in self._kinds:
            kinds: dict[PlaceMemory, int] = {}
            for place in range(self.count):
                if self.may_host(place, base):
                    kinds.setdefault(self.memory(place, base), place)
            self._kinds[base] = list(kinds.values())
        return self._kinds[base]

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
        memory, size = self.memory(place, job.base_model), job.size_on(self.views[place].shape.device)
        return memory.fixed + size.bytes + memory.per_token * max(memory.cap, size.worst_tokens)

    def limit(self, place: int) -> float:
        """Bytes that may be used; infinite where nobody knows."""
        return float(self.room.limits[place])

    def fits_alone(self, place: int, job: JobView) -> bool:
        """Whether a job fits onto a place that has nothing else."""
        return self.alone(place, job) <= self.limit(place)

    def size_at(self, place: int, job: int) -> tuple[float, float]:
        """What a job takes of a place: bytes of its adapter, and tokens of its largest micro-batch."""
        return self._jobs.sizes[int(self.size[place])][job]

    def fits(self, job: int) -> Mask:
        """Where a further job fits, by its memory and by the company there."""
        fits = self.room.fits(self._jobs.bytes[self._sizes, job], self._jobs.worst[self._sizes, job]) & ~self.solo
        return fits & (self.jobs_on == 0) if self._jobs.alone[job] else fits

    def fits_at(self, place: int, job: int) -> bool:
        """Whether a further job fits on one place."""
        if self.solo[place] or (self._jobs.alone[job] and self.jobs_on[place]):
            return False
        return self.room.fits_at(place, *self.size_at(place, job))

    def may_fit(self, where: Mask, jobs: Ints) -> Mask:
        """Which of some jobs may still fit on one of some places: none that fits is left out."""
        if len(self._jobs.devices) == 1:
            return self.room.may_fit(where, self._jobs.bytes[0, jobs], self._jobs.worst[0, jobs])
        mask = np.zeros(len(jobs), bool)
        for size in np.unique(self.size[where]).tolist():
            alike = where & (self.size == size)
            mask |= self.room.may_fit(alike, self._jobs.bytes[size, jobs], self._jobs.worst[size, jobs])
        return mask

    def host(self, place: int, base: str) -> None:
        """Plan another base model for a place where no job is planned."""
        self.base[place] = self._bases.index(base)
        self.load[place] = self.views[place].seconds_to_load(base)
        speed = self._speeds[place] = self._speed(place, base)
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
        self.planned[place].append(job)
        self.room.add(place, *self.size_at(place, job))
        self.vacant -= int(not self.jobs_on[place] and not self.pending[place] and self.ready[place])
        self.jobs_on[place] += 1
        self.solo[place] |= self._jobs.alone[job]

    def share(self, place: int, job: int) -> None:
        """Count a job that is held for those whose sharing is weighed from here on."""
        jobs, slot = self._jobs, int(self._sharers[place])
        if slot == self._sharing.shape[2]:
            self._sharing = np.concatenate([self._sharing, np.zeros_like(self._sharing)], axis=2)
        self._sharing[:, place, slot] = jobs.left[job], jobs.weight[job], self.added_at(place, job)
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
        self.solo[place] = False
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
                room.add(place, *self.size_at(place, job))
            for view in self.leaving[place]:
                room.add(place, *view.size_on(self.views[place].shape.device))
        return room

    def company(self) -> list[list[bool]]:
        """Of every job that is attached now whether it shares no place, by place."""
        here = [[bool(self._jobs.alone[job]) for job in there] for there in self.attached]
        return [[*one, *(view.alone for view in leaving)] for one, leaving in zip(here, self.leaving, strict=True)]

    def added(self, job: int) -> Floats:
        """v of a job on each place."""
        tokens = self._jobs.tokens[job]
        further_batches = np.maximum(0.0, np.ceil(tokens / self.budget) - 1)
        added: Floats = self._token_seconds * tokens + self._adapter_seconds + further_batches * self._step_seconds
        return added

    def added_at(self, place: int, job: int) -> float:
        """v of a job on one place."""
        return self._speeds[place].added(float(self._jobs.tokens[job]), self.views[place].shape.token_budget)

    def overhead(self, job: int) -> Floats:
        """The fixed cost of a step on each place, in parts of that on the average place of a job."""
        parts: Floats = self._step_seconds / max(float(self._jobs.shared[job]), 1e-12)
        return parts

    def overhead_at(self, place: int, job: int) -> float:
        """The same on one place."""
        return self._speeds[place].step_seconds / max(float(self._jobs.shared[job]), 1e-12)

    def least_weight_added(self, hosts: Mask, jobs: Ints) -> Floats:
        """Weight there times v of some jobs, over the fixed cost of a step: no more than on any of some places."""
        columns, weight = self._jobs, self.weight_on[hosts]
        each = weight / self._step_seconds[hosts]
        by_token = float((each * self._token_seconds[hosts]).min())
        by_adapter = float((each * self._adapter_seconds[hosts]).min())
        least: Floats = by_token * columns.tokens[jobs] + float(weight.min()) * columns.least_further[jobs] + by_adapter
        return least

    def _seconds_of_a_step(self, base: int, hosts: Mask) -> Floats:
        """Of the mean job of a base model alone, on some places."""
        tokens = float(self._jobs.tokens[self._jobs.base == base].mean())
        seconds: Floats = self._step_seconds[hosts] + self._token_seconds[hosts] * tokens + self._adapter_seconds[hosts]
        return seconds

    def worth(self, base: int) -> float:
        """How many of the average place the hosts of a base model are worth; all of them where they are equal."""
        hosts = self.hosts(base)
        if not hosts.any():
            return 0.0
        seconds = self._seconds_of_a_step(base, hosts)
        speed = float(seconds.min()) / np.maximum(seconds, 1e-12)
        return float(speed.sum() ** 2 / (speed**2).sum())

    def find_outpaced(self) -> Mask:
        """Places whose base model another one hosts that is clearly faster; from here on costs know of them."""
        for base in np.unique(self._jobs.base).tolist():
            hosts = self.hosts(base)
            if hosts.any():
                seconds = self._seconds_of_a_step(base, hosts)
                self._outpaced[hosts] = seconds > _CLEARLY * float(seconds.min())
        return self._outpaced

    def _own_seconds(self, job: int, added: Floats) -> Floats:
        """Until a job is done on each place, alone. A slow place is left when a fast one is free.

        That is when the jobs that are planned there are done, and then those that are planned on slow ones and come
        first. Until then a slow place does its part of the work, r of what a fast one would do.
        """
        alone: Floats = self._jobs.left[job] * (self._step_seconds + added)
        hosts = self.hosts(int(self._jobs.base[job]))
        slow = hosts & self._outpaced
        if not slow.any():
            return alone
        fast = hosts & ~slow
        left, _, each = self._sharing
        groups = left.max(axis=1) * self._step_seconds + (left * each).sum(axis=1)
        free = float(groups[fast].min())
        if not free:
            return alone
        least = float(alone[fast].min())
        r = least / np.maximum(alone, 1e-12)
        ahead = float((groups * r)[slow].sum()) / (int(fast.sum()) + float(r[slow].sum()))
        later = least + (1 - r) * (free + ahead) + 2 * self.swap
        return np.where(slow, np.minimum(alone, later), alone)

    def sharing_cost(self, job: int) -> Floats:
        """Weighted seconds that a job costs itself and the jobs that are planned on each place, until it is done.

        Own time alone, and for each neighbour the steps that both do together, each slowed by what the other adds:
        sum over k of min(n_k, n_j) * (w_k v_j + w_j v_k).
        """
        jobs = self._jobs
        left, weight, added = jobs.left[job], jobs.weight[job], self.added(job)
        n, w, v = self._sharing
        pairs = np.minimum(n, left) * (w * added[:, None] + weight * v)
        cost: Floats = pairs.sum(axis=1) + weight * self._own_seconds(job, added) + weight * self.load * self.starting
        return cost
