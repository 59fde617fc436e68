"""Jobs on their way into the queue: what they must pass, all problems of a request listed at once, and what follows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from gpu_actor.adapters.start_check import check_adapter_fits
from gpu_actor.adapters.targets import plan_layers
from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.errors import LorayError
from gpu_actor.paths.urls import is_url
from orchestrator.cluster.cluster_config import ClusterConfig
from orchestrator.cluster.cluster_file import with_policy
from orchestrator.cluster.fleet import Fleet
from orchestrator.control.job_needs import scheduling_view
from orchestrator.control.preview import plan_apart
from orchestrator.control.snapshot import SnapshotBuilder
from orchestrator.endpoint.references import reach, written
from orchestrator.formatting import plural
from orchestrator.jobs.job import JobSpec
from orchestrator.jobs.output_folder import make_folders, write_job_file
from orchestrator.jobs.owner import OPERATOR
from orchestrator.jobs.preflight import check_files, check_roots
from orchestrator.jobs.report_to import not_installed
from orchestrator.jobs.states import TERMINAL, JobState
from orchestrator.knowledge.base_catalog import BaseCatalog
from orchestrator.scheduler.policy import decide
from orchestrator.scheduler.view import ActorState, ActorView, ClusterView
from orchestrator.store.errors import LiveJobError
from orchestrator.store.records import JobRecord
from orchestrator.validation.field_index import dotted
from orchestrator.validation.problems import Problem, explain

if TYPE_CHECKING:
    from orchestrator.store.store import Store

Jobs = Sequence[Mapping[str, Any]]
"""The fields of each `JobSpec`, paths absolute."""


class Admission:
    """The checks of one orchestrator."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        bases: BaseCatalog,
        snapshots: SnapshotBuilder,
        config: ClusterConfig,
    ) -> None:
        self._store, self._fleet, self._bases, self._snapshots = store, fleet, bases, snapshots
        self._config = config

    async def check(self, jobs: Jobs, owner: str = OPERATOR) -> tuple[list[JobSpec], list[Problem]]:
        """The jobs, and everything that keeps them from being accepted.

        Args:
            jobs: Fields of `JobSpec`, paths absolute.
            owner: Whose they would be.
        """
        specs, problems = _read(jobs)
        if not problems and not specs:
            problems = [Problem("request", "", "holds no job; give at least one")]
        problems += self._beyond_quota(len(specs), owner)
        outside = check_roots(specs, reach(owner, self._config), written(owner, self._config))
        if outside:  # nothing there is even opened
            return specs, problems + outside
        problems += await asyncio.to_thread(check_files, specs, allow_pickle=self._config.allow_pickle)
        problems += _unreachable_trackers(specs)
        problems += _only_in_folders(specs, self._config)
        problems += self._taken(specs)
        if not any(problem.field == "base_model" for problem in problems):
            problems += await self._check_bases(specs)
        return specs, problems

    def _beyond_quota(self, count: int, owner: str) -> list[Problem]:
        most = self._config.quota_of(owner).queued
        if most is None:
            return []
        waiting = sum(job.owner == owner for job in self._store.jobs([JobState.QUEUED, JobState.PAUSED]))
        if waiting + count <= most:
            return []
        has = f"{owner} has {plural(waiting, 'job')} waiting"
        message = f"{has}, and {count} more would exceed the quota of {most}; submit fewer"
        return [Problem("request", "", message)]

    def _taken(self, specs: Sequence[JobSpec]) -> list[Problem]:
        return [Problem(f"job {error.job}", error.field, error.message) for error in self._store.live_conflicts(specs)]

    async def _check_bases(self, specs: Sequence[JobSpec]) -> list[Problem]:
        refs = sorted({spec.base_model for spec in specs})
        described = dict(zip(refs, await asyncio.gather(*(self._describe(ref) for ref in refs)), strict=True))
        self._fleet.discover()
        await self._fleet.gpus.settled()
        self._fleet.discover()
        problems: list[Problem] = []
        for spec in specs:
            base = described[spec.base_model]
            if isinstance(base, BaseDescription):
                problems += await asyncio.to_thread(_misfits, spec, base, self._snapshots.places(base))
        for ref, base in described.items():
            if isinstance(base, str):
                names = [spec.name for spec in specs if spec.base_model == ref]
                problems.append(Problem(f"job {', '.join(names)}", "base_model", base))
        return problems

    async def _describe(self, ref: str) -> BaseDescription | str:
        try:
            return await self._bases.get(ref)
        except LorayError as error:
            return str(error).removeprefix("base_model: ")


class Submissions:
    """What is submitted to one orchestrator."""

    def __init__(self, config: ClusterConfig, store: Store, bases: BaseCatalog, admission: Admission) -> None:
        self._config, self._store, self._bases, self._admission = config, store, bases, admission

    async def check(self, jobs: Jobs) -> list[dict[str, str]]:
        """What keeps jobs from being accepted."""
        _, problems = await self._admission.check(jobs)
        return [asdict(problem) for problem in problems]

    async def plan(self, jobs: Jobs, policy: str | None, owner: str, view: Callable[[], ClusterView]) -> dict[str, Any]:
        """What would become of jobs; see `Controller.plan`.

        Args:
            jobs: What would be submitted.
            policy: Name of a policy to plan with; None: that of this cluster.
            owner: Whose they would be.
            view: Gives the cluster as it is.
        """
        name = with_policy(self._config, policy).scheduler.policy
        specs, problems = await self._admission.check(jobs, owner)
        if problems:
            return {"jobs": [], "problems": [asdict(problem) for problem in problems]}
        bases = {spec.base_model: await self._bases.get(spec.base_model) for spec in specs}
        names = {job.id: job.name for job in self._store.jobs([JobState.QUEUED, JobState.RUNNING])}
        rows = await plan_apart(specs, view(), bases, name, names)
        return {"jobs": rows, "problems": []}

    async def submit(self, jobs: Jobs, request_id: str, owner: str) -> tuple[list[JobRecord], list[Problem]]:
        """Accept jobs, all or none; see `Controller.submit`.

        Returns:
            The jobs, and what keeps them from being accepted; one of them is empty.
        """
        accepted = self._store.request(request_id)
        if accepted is None:
            specs, problems = await self._admission.check(jobs, owner)
            accepted = self._store.request(request_id)  # the same request may have come twice at a time
        if accepted is None:
            problems = problems or await asyncio.to_thread(make_folders, specs)
            if problems:
                return [], problems
            try:
                accepted = await self._store.turn(lambda: self._store.add(specs, request_id, owner))
            except LiveJobError as error:
                return [], [Problem(f"job {error.job}", error.field, error.message)]
        for job in accepted:
            if job.state not in TERMINAL:
                with contextlib.suppress(OSError):  # they are accepted; who places them tries again, and tells of it
                    await asyncio.to_thread(write_job_file, job.spec)
        return accepted, []


def _read(jobs: Sequence[Mapping[str, Any]]) -> tuple[list[JobSpec], list[Problem]]:
    specs, problems = [], []
    for number, data in enumerate(jobs, start=1):
        try:
            specs.append(JobSpec.model_validate(data))
        except ValidationError as error:
            source = f"job {data.get('name') or number}" if isinstance(data, Mapping) else f"job {number}"
            explained = (
                explain(error, data, JobSpec, "job") if isinstance(data, Mapping) else [((), "is no mapping of fields")]
            )
            problems += [Problem(source, dotted(path), message) for path, message in explained]
    return specs, problems


def _unreachable_trackers(specs: Sequence[JobSpec]) -> list[Problem]:
    return [
        Problem(f"job {spec.name}", "report_to", message)
        for spec in specs
        if (message := not_installed(spec.report_to or ()))
    ]


def _only_in_folders(specs: Sequence[JobSpec], config: ClusterConfig) -> list[Problem]:
    """What jobs want that a bucket as their output folder does not have: who reads along there reads files."""
    problems = []
    for spec in specs:
        if not is_url(spec.output_dir):
            continue
        named = config.report_to if spec.report_to is None else spec.report_to
        if named:
            message = f"{', '.join(named)}: not with {spec.output_dir}; give [], or a folder as output_dir"
            problems.append(Problem(f"job {spec.name}", "report_to", message))
        if spec.early_stop.halving_steps is not None:
            message = f"not with {spec.output_dir}; leave it out, or give a folder as output_dir"
            problems.append(Problem(f"job {spec.name}", "early_stop.halving_steps", message))
    return problems


def _misfits(spec: JobSpec, base: BaseDescription, places: Iterable[ActorView]) -> list[Problem]:
    """What of a job does not go with its base model, or with any actor."""
    source, problems = f"job {spec.name}", []
    for check in (lambda: plan_layers(base, spec.lora), lambda: check_adapter_fits(base, spec.lora)):
        try:
            check()
        except LorayError as error:
            field, _, message = str(error).partition(": ")
            return [Problem(source, field, message)]
    places = list(places)
    hosts = [place for place in places if place.pinned in (None, spec.base_model)]
    if places and not hosts:
        pinned = ", ".join(sorted({str(place.pinned) for place in places}))
        message = f"{spec.base_model} has no actor: the cluster file gives every one to another base model ({pinned})"
        problems.append(Problem(source, "base_model", message))
    job = scheduling_view("", spec, base, devices={place.shape.device for place in hosts})
    blocked = [_blocked(place) for place in hosts]  # the question is not where it could run now, but whether ever
    never = decide(ClusterView((job,), tuple(blocked), {})).rejections  # by what was measured, where it was
    return [*problems, *(Problem(source, "training", reason) for reason in never.values())]


def _blocked(place: ActorView) -> ActorView:
    return replace(place, state=ActorState.BLOCKED, base_model=None, reason=None)
