"""The jobs of one view as columns of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.scheduler import estimate
from orchestrator.scheduler.room import Floats, Ints, Mask, PlaceMemory
from orchestrator.scheduler.view import ActorState, ActorView, ClusterView, JobRow, JobView, MemoryModel, SpeedModel

_HOSTING = (ActorState.READY, ActorState.STARTING)


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
    """Speed and token budget, the mean over the places of a base model, each by the square of its speed.

    So it is the place that a unit of work meets, where all do as much as they can and share it among them.
    """

    step_seconds: float
    token_seconds: float
    adapter_seconds: float
    token_budget: float


def _kind_of_host(place: ActorView, speed: SpeedModel) -> _AverageHost:
    return _AverageHost(speed.step_seconds, speed.token_seconds, speed.adapter_seconds, place.shape.token_budget)


_ROW_TYPE = np.dtype([(name, bool if name in ("movable", "leaving") else np.float64) for name in JobRow._fields])


def _table(jobs: Sequence[JobView]) -> dict[str, NDArray[Any]]:
    """The columns of `JobRow` over some jobs, by name."""
    rows = np.fromiter((job.row for job in jobs), _ROW_TYPE, len(jobs))
    return {name: rows[name].copy() for name in JobRow._fields}


def _pairs(adapter_bytes: Floats, worst: Floats) -> list[list[tuple[float, float]]]:
    """Two tables of numbers as one of pairs."""
    return [list(zip(*rows, strict=True)) for rows in zip(adapter_bytes.tolist(), worst.tolist(), strict=True)]


class Jobs:
    """Columns over the jobs of a view, in the order of arrival; those that leave for good are none of them.

    Attributes:
        at: Index of the place where a job is attached; -1 for none, and for one that is leaving.
        devices: Of the places, each once.
        bytes, worst: What a job takes of a place, a row for each of the devices (`Places.size`).
        sizes: The same by device and job, for who asks of one: a number of a column costs as much as the whole column.
        alone: Whether it shares no place.
        leaving: Whether it is planned as if it were in the queue, and is not there yet.
        base: Index of its base model in `bases`.
        least_further: Shared batches that one step takes beyond the first, where the token budget is the largest.
        left, total: Optimizer steps still to do, and all.
        added: v, the seconds that one of its steps adds to a shared step, on the average place of its base model.
        shared: a, the fixed seconds of a shared step there.
        class_weight: Of its class.
        weight: The same, and what a policy makes of it.
    """

    def __init__(self, view: ClusterView, places: Sequence[ActorView], bases: Sequence[str], models: Models) -> None:
        staying = (job for job in view.jobs if job.returns or not job.leaving)
        views = sorted(staying, key=attrgetter("arrival", "id"))
        self.views, self.count = views, len(views)
        where = {place.id: index for index, place in enumerate(places)}
        number = {ref: index for index, ref in enumerate(bases)}
        at = [-1 if job.actor is None or job.leaving else where.get(job.actor, -2) for job in views]
        self.at = np.maximum(np.array(at, np.int64), -1)
        self.lost = np.array(at, np.int64) == -2
        self.base = np.array([number[job.base_model] for job in views], np.int64)
        table = _table(views)
        self.tokens = table["tokens"]
        self.devices = list(dict.fromkeys(place.shape.device for place in places)) or [""]
        self.bytes, self.worst = self._sizes(views, table)
        self.sizes = _pairs(self.bytes, self.worst)
        self._largest_budget = float(max((place.shape.token_budget for place in places), default=1))
        self.least_further = self._further_batches(self.tokens)
        self.left, self.total = table["left"], table["total"]
        self.priority = table["priority"]
        self.class_weight, self.weight = table["weight"], table["weight"].copy()
        self.movable, self.leaving = table["movable"], table["leaving"]
        self.alone = np.array([job.alone for job in views], bool)
        self.age = view.now - table["submitted_at"]
        self.waited = np.where(self.leaving, 0.0, view.now - table["queued_at"])
        self.added, self.shared = np.zeros(self.count), np.zeros(self.count)
        self._average_hosts: dict[int, _AverageHost] = {}  # of each base model
        for index, ref in enumerate(bases):
            self._average_host(index, ref, places, models)

    def _sizes(self, views: Sequence[JobView], table: Mapping[str, NDArray[Any]]) -> tuple[Floats, Floats]:
        """`bytes` and `worst` of some jobs."""
        if not any(job.sizes for job in views):
            rows = (len(self.devices), 1)
            return np.tile(table["bytes"], rows), np.tile(table["worst"], rows)
        sizes = [[job.size_on(device) for job in views] for device in self.devices]
        columns = np.array(sizes, np.float64).reshape(len(sizes), len(views), 2)
        return columns[:, :, 0], columns[:, :, 1]

    def _further_batches(self, tokens: Floats) -> Floats:
        further: Floats = np.maximum(0.0, np.ceil(tokens / self._largest_budget) - 1)
        return further

    def _average_host(self, index: int, ref: str, places: Sequence[ActorView], models: Models) -> None:
        """Find the average of the places that host a base model, or else of those that may, and charge its jobs."""
        hosts = [place for place in places if place.base_model == ref and place.state in _HOSTING]
        hosts = hosts or [place for place in places if place.pinned in (None, ref)]
        jobs = np.flatnonzero(self.base == index)
        if not hosts or not len(jobs):
            return
        alike: dict[object, list[ActorView]] = {}
        for place in hosts:
            alike.setdefault((id(place.speeds.get(ref)), place.shape), []).append(place)
        kinds = np.array([_kind_of_host(places[0], models.speed(places[0], ref)) for places in alike.values()])
        number = np.array([len(places) for places in alike.values()])
        step, token, adapter, _ = kinds.T
        seconds = np.maximum(step + token * float(self.tokens[jobs].mean()) + adapter, 1e-12)
        weight = number * (float(seconds.min()) / seconds) ** 2
        self._average_hosts[index] = _AverageHost(*(weight / weight.sum() @ kinds).tolist())
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
        sizes = self._sizes(views, table)
        self.bytes, self.worst = (np.hstack(pair) for pair in zip((self.bytes, self.worst), sizes, strict=True))
        for there, new in zip(self.sizes, _pairs(*sizes), strict=True):
            there.extend(new)
        base = np.array([bases.index(job.base_model) for job in views], np.int64)
        for name in ("tokens", "left", "total", "priority", "weight"):
            setattr(self, name, np.append(getattr(self, name), table[name]))
        self.least_further = np.append(self.least_further, self._further_batches(table["tokens"]))
        self.movable, self.leaving, self.lost = (
            np.append(column, np.zeros(more, bool)) for column in (self.movable, self.leaving, self.lost)
        )
        self.alone = np.append(self.alone, [job.alone for job in views])
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


def unique_bases(view: ClusterView) -> list[str]:
    """Every base model that a job names, sorted. Of others nothing need be known: a place that hosts one has no job."""
    return sorted({job.base_model for job in view.jobs})
