"""What a job must pass before it is accepted. All problems of all jobs of a request are told at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from gpu_actor.errors import LorayError
from gpu_actor.footprint import (
    MICRO_BATCH_CAP,
    BaseDescription,
    adapter_bytes,
    check_adapter_fits,
    match_targets,
    worst_micro_batch_tokens,
)
from orchestrator.bases import BaseCatalog
from orchestrator.field_errors import Problem, explain
from orchestrator.field_index import dotted
from orchestrator.fleet import Fleet
from orchestrator.job import JobSpec
from orchestrator.preflight import check_files, check_roots
from orchestrator.scheduler.policy import decide
from orchestrator.scheduler.view import ActorState, ActorView, ClusterView, JobView
from orchestrator.store import Store


class Admission:
    """The checks of one orchestrator."""

    def __init__(self, store: Store, fleet: Fleet, bases: BaseCatalog, allowed_roots: Sequence[str]) -> None:
        self._store, self._fleet, self._bases = store, fleet, bases
        self._roots = allowed_roots

    async def check(self, jobs: Sequence[Mapping[str, Any]]) -> tuple[list[JobSpec], list[Problem]]:
        """The jobs, and everything that keeps them from being accepted.

        Args:
            jobs: Fields of `JobSpec`, paths absolute.
        """
        specs, problems = _read(jobs)
        if not problems and not specs:
            problems = [Problem("request", "", "holds no job; give at least one")]
        outside = check_roots(specs, self._roots)
        if outside:  # nothing there is even looked at
            return specs, problems + outside
        problems += await asyncio.to_thread(check_files, specs)
        problems += self._taken(specs)
        if not any(problem.field == "base_model" for problem in problems):
            problems += await self._check_bases(specs)
        return specs, problems

    def _taken(self, specs: Sequence[JobSpec]) -> list[Problem]:
        return [Problem(f"job {error.job}", error.field, error.message) for error in self._store.live_conflicts(specs)]

    async def _check_bases(self, specs: Sequence[JobSpec]) -> list[Problem]:
        refs = sorted({spec.base_model for spec in specs})
        found = dict(zip(refs, await asyncio.gather(*(self._describe(ref) for ref in refs)), strict=True))
        self._fleet.discover()
        problems: list[Problem] = []
        for spec in specs:
            base = found[spec.base_model]
            if isinstance(base, BaseDescription):
                problems += await asyncio.to_thread(_misfits, spec, base, self._fleet.views())
        for ref, base in found.items():
            if isinstance(base, str):
                names = [spec.name for spec in specs if spec.base_model == ref]
                problems.append(Problem(f"job {', '.join(names)}", "base_model", base))
        return problems

    async def _describe(self, ref: str) -> BaseDescription | str:
        try:
            return await self._bases.get(ref)
        except LorayError as error:
            return str(error).removeprefix("base_model: ")


def scheduling_view(
    job_id: str,
    spec: JobSpec,
    base: BaseDescription,
    arrival: int = 0,
    queued_at: float = 0.0,
    actor: str | None = None,
) -> JobView:
    """A job as the scheduler sees it.

    Args:
        job_id: Its id.
        spec: What it is.
        base: Its base model.
        arrival: Rank by submission.
        queued_at: When it joined the queue (Unix time).
        actor: The place where it runs.
    """
    return JobView(
        id=job_id,
        base_model=spec.base_model,
        priority=spec.queue.priority,
        arrival=arrival,
        adapter_bytes=adapter_bytes(base, spec.lora),
        worst_tokens=worst_micro_batch_tokens(spec.training, max(MICRO_BATCH_CAP.values())),
        queued_at=queued_at,
        actor=actor,
    )


def _read(jobs: Sequence[Mapping[str, Any]]) -> tuple[list[JobSpec], list[Problem]]:
    specs, problems = [], []
    for number, data in enumerate(jobs, start=1):
        try:
            specs.append(JobSpec.model_validate(data))
        except ValidationError as error:
            source = f"job {data.get('name') or number}" if isinstance(data, Mapping) else f"job {number}"
            found = (
                explain(error, data, JobSpec, {}) if isinstance(data, Mapping) else [((), "is no mapping of fields")]
            )
            problems += [Problem(source, dotted(path), message) for path, message in found]
    return specs, problems


def _misfits(spec: JobSpec, base: BaseDescription, places: Iterable[ActorView]) -> list[Problem]:
    """What of a job does not go with its base model, or with any actor."""
    source, problems = f"job {spec.name}", []
    for check in (lambda: match_targets(base, spec.lora.target_modules), lambda: check_adapter_fits(base, spec.lora)):
        try:
            check()
        except LorayError as error:
            field, _, message = str(error).partition(": ")
            return [Problem(source, field, message)]
    places = list(places)
    hosts = [place for place in places if place.pinned in (None, spec.base_model)]
    if places and not hosts:
        pinned = ", ".join(sorted({str(place.pinned) for place in places}))
        words = f"{spec.base_model} has no actor: the cluster file gives every one to another base model ({pinned})"
        problems.append(Problem(source, "base_model", words))
    job = scheduling_view("", spec, base)
    blocked = [_blocked(place) for place in hosts]  # the question is not where it could run now, but whether ever
    never = decide(ClusterView((job,), tuple(blocked), {spec.base_model: base})).rejections
    return [*problems, *(Problem(source, "training", reason) for reason in never.values())]


def _blocked(place: ActorView) -> ActorView:
    return ActorView(place.id, place.name, ActorState.BLOCKED, place.shape, None, place.pinned, place.memory_limit)
