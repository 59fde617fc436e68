"""What `loray plan` tells: memory, place, start, finish and company of jobs that nobody has submitted."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.errors import LorayError
from gpu_actor.device.accelerators import accelerators
from orchestrator.cluster.cluster_config import ClusterConfig
from orchestrator.cluster.places import HEAD, Place, find_places, listed_places
from orchestrator.control.job_needs import micro_batch_cap, scheduling_view
from orchestrator.jobs.job import JobSpec
from orchestrator.knowledge.data_size import guess_size
from orchestrator.knowledge.description_files import recall
from orchestrator.knowledge.place_models import Known, with_profiles
from orchestrator.knowledge.profiles import Profiles
from orchestrator.scheduler.forecast import Forecast, forecast
from orchestrator.scheduler.policy import DEFAULT
from orchestrator.scheduler.view import ActorState, ActorView, ClusterView
from orchestrator.store.store import Store

PLAN_SECONDS = 240.0


def plan_jobs(
    specs: Sequence[JobSpec],
    view: ClusterView,
    bases: Mapping[str, BaseDescription],
    policy: str = DEFAULT,
    names: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """What would become of jobs if they were submitted now.

    Args:
        specs: The jobs.
        view: The cluster with what it has to do.
        bases: Descriptions of the jobs' base models.
        policy: Name of the policy.
        names: Of the jobs that the cluster has to do, by id.
    """
    start = max((job.arrival for job in view.jobs), default=0) + 1
    cap = micro_batch_cap(actor.shape.device for actor in view.actors)
    new = []
    for number, spec in enumerate(specs):
        size = guess_size(spec.dataset)
        job = scheduling_view(f"plan:{number}", spec, bases[spec.base_model], size=size, cap=cap)
        new.append(replace(job, arrival=start + number, submitted_at=view.now, queued_at=view.now))
    whole = replace(view, jobs=(*view.jobs, *new), bases={**view.bases, **bases})
    found = forecast(whole, policy, {job.id for job in new})
    names = {**(names or {}), **{job.id: spec.name for job, spec in zip(new, specs, strict=True)}}
    places = {actor.id: actor.name for actor in view.actors}
    return [_row(spec, found[job.id], names, places, view.now) for job, spec in zip(new, specs, strict=True)]


async def plan_apart(*arguments: Any) -> list[dict[str, Any]]:
    """`plan_jobs` in a process of its own on this node: it takes long where much waits, and must hold up nobody.

    Raises:
        LorayError: It takes too long.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    found = ray.remote(num_cpus=0, max_calls=1)(plan_jobs).options(scheduling_strategy=here).remote(*arguments)
    try:
        return cast("list[dict[str, Any]]", await asyncio.wait_for(found, PLAN_SECONDS))
    except asyncio.TimeoutError:
        ray.cancel(found, force=True)
        raise LorayError(f"no plan was made within {PLAN_SECONDS:.0f} s; plan fewer jobs at a time") from None


def _row(
    spec: JobSpec, found: Forecast, names: Mapping[str, str], places: Mapping[str, str], now: float
) -> dict[str, Any]:
    reason = found.rejected
    beyond = found.beyond and reason is None
    if reason is None and not beyond and not math.isfinite(found.finish):
        reason = "no actor would ever start it"
    return {
        "job": spec.name,
        "base_model": spec.base_model,
        "steps": found.job.steps_total,
        "tokens_per_step": found.job.tokens_per_step,
        "adapter_bytes": found.job.adapter_bytes,
        "bytes": found.needs,
        "actor": places.get(found.place or ""),
        "moves": max(0, len(found.places) - 1),
        "start_s": found.start - now if math.isfinite(found.start) else None,
        "finish_s": found.finish - now if math.isfinite(found.finish) else None,
        "with": sorted(names.get(job_id, job_id) for job_id in found.company),
        "reason": reason,
        "remark": "its end was not forecast: too much comes before it" if beyond else None,
    }


def plan_offline(specs: Sequence[JobSpec], config: ClusterConfig) -> list[dict[str, Any]]:
    """The plan for the actors of a cluster file on this machine, all of them idle. Nothing is started.

    Raises:
        LorayError: A base model cannot be described.
    """
    refs = {spec.base_model for spec in specs}
    bases = {ref: _describe(ref, config.trust_remote_code) for ref in refs}
    profiles = _known_profiles(config)
    actors = tuple(with_profiles(_empty(slot), slot, Known.of(slot, profiles, bases)) for slot in _slots(config))
    view = ClusterView((), actors, bases, makespan=config.scheduler.makespan)
    return plan_jobs(specs, view, bases, config.scheduler.policy)


def _describe(ref: str, trust_remote_code: bool) -> BaseDescription:
    found = recall(ref, trust_remote_code)
    if found is not None:
        return found
    from gpu_actor.model.describe import describe_base

    return describe_base(ref, trust_remote_code)


def _slots(config: ClusterConfig) -> list[Place]:
    """The places of a cluster file as they would be found on this machine."""
    import torch

    here = [{"NodeID": "here", "Alive": True, "Resources": {HEAD: 1.0, "GPU": torch.cuda.device_count()}}]
    slots = find_places(here) if isinstance(config.actors, str) else listed_places(config.actors, here)
    gpu = max(accelerators(), key=lambda one: one.total_bytes, default=None)
    return [slot.on(gpu) for slot in slots]


def _empty(slot: Place) -> ActorView:
    return ActorView(
        id=slot.id,
        name=slot.id,
        state=ActorState.EMPTY,
        shape=slot.shape,
        pinned=slot.settings.base_model,
        memory_limit=slot.memory_limit,
    )


def _known_profiles(config: ClusterConfig) -> Profiles:
    """What earlier runs from the same storage have learned; nothing where there was none."""
    if config.database is None and not (Path(config.storage) / "loray.db").exists():
        return Profiles(None)
    try:
        store = Store(config.database_url)
    except LorayError:
        return Profiles(None)
    try:
        return Profiles(store)
    finally:
        store.close()
