"""What `loray plan` tells: memory, place, start, finish and company of jobs that nobody has submitted."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.errors import LorayError
from orchestrator.cluster.cluster_config import ClusterConfig
from orchestrator.cluster.node_gpus import places_on_this_machine
from orchestrator.control.job_needs import scheduling_view
from orchestrator.jobs.data_checks import first_records_remark
from orchestrator.jobs.job import JobSpec
from orchestrator.knowledge.data_size import guess_sizes
from orchestrator.knowledge.description_files import recall_or_describe
from orchestrator.knowledge.place_models import with_models
from orchestrator.knowledge.profiles import Profiles
from orchestrator.scheduler.forecast import Forecast, forecast
from orchestrator.scheduler.policy import DEFAULT
from orchestrator.scheduler.view import ActorView, ClusterView

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
    devices = {actor.shape.device for actor in view.actors}
    ids = [f"plan:{number}" for number in range(len(specs))]
    sizes = guess_sizes({job_id: spec.dataset for job_id, spec in zip(ids, specs, strict=True)})
    new = []
    for number, (job_id, spec) in enumerate(zip(ids, specs, strict=True)):
        job = scheduling_view(job_id, spec, bases[spec.base_model], size=sizes[job_id], devices=devices)
        new.append(replace(job, arrival=start + number, submitted_at=view.now, queued_at=view.now))
    whole = replace(view, jobs=(*view.jobs, *new), bases={**view.bases, **bases})
    forecasts = forecast(whole, policy, {job.id for job in new})
    names = {**(names or {}), **{job.id: spec.name for job, spec in zip(new, specs, strict=True)}}
    places = {actor.id: actor for actor in view.actors}
    remarks = [
        (bases[spec.base_model].training_mode, remark) for spec, remark in zip(specs, _data_remarks(specs), strict=True)
    ]
    return [
        _row(spec, forecasts[job.id], names, places, view.now, own)
        for job, spec, own in zip(new, specs, remarks, strict=True)
    ]


def _data_remarks(specs: Sequence[JobSpec]) -> list[str]:
    """What the first records of each job's data tell; the jobs of a grid share theirs, which are read once."""
    remarks: dict[tuple[str, str], str] = {}
    keys = [(spec.dataset.model_dump_json(), spec.training.objective) for spec in specs]
    for key, spec in zip(keys, specs, strict=True):
        if key not in remarks:
            remarks[key] = first_records_remark(spec.dataset, spec.training)
    return [remarks[key] for key in keys]


async def plan_apart(*arguments: Any) -> list[dict[str, Any]]:
    """`plan_jobs` in a process of its own on this node: it takes long where much waits, and must hold up nobody.

    Raises:
        LorayError: It takes too long.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    plan = (
        ray.remote(num_cpus=0, max_calls=1, enable_task_events=False)(plan_jobs)
        .options(scheduling_strategy=here)
        .remote(*arguments)
    )
    try:
        return cast("list[dict[str, Any]]", await asyncio.wait_for(plan, PLAN_SECONDS))
    except asyncio.TimeoutError:
        ray.cancel(plan, force=True)
        raise LorayError(f"no plan was made within {PLAN_SECONDS:.0f} s; plan fewer jobs at a time") from None


def _row(
    spec: JobSpec,
    expected: Forecast,
    names: Mapping[str, str],
    places: Mapping[str, ActorView],
    now: float,
    remarks: Iterable[str | None],
) -> dict[str, Any]:
    reason, place = expected.rejected, places.get(expected.place or "")
    beyond = expected.beyond and reason is None
    if reason is None and not beyond and not math.isfinite(expected.finish):
        reason = "no actor would ever start it"
    not_forecast = "its end was not forecast: too much comes before it" if beyond else ""
    return {
        "job": spec.name,
        "base_model": spec.base_model,
        "steps": expected.job.steps_total,
        "tokens_per_step": expected.job.tokens_per_step,
        "adapter_bytes": expected.job.size_on(place.shape.device if place else "").bytes,
        "bytes": expected.needs,
        "actor": place.name if place else None,
        "moves": max(0, len(expected.places) - 1),
        "start_s": expected.start - now if math.isfinite(expected.start) else None,
        "finish_s": expected.finish - now if math.isfinite(expected.finish) else None,
        "with": sorted(names.get(job_id, job_id) for job_id in expected.company),
        "reason": reason,
        "remark": "; ".join(filter(None, (not_forecast, *remarks))) or None,
    }


def plan_offline(specs: Sequence[JobSpec], config: ClusterConfig) -> list[dict[str, Any]]:
    """The plan for the actors of a cluster file on this machine, all of them idle. Nothing is started or written.

    Raises:
        LorayError: A base model cannot be described.
    """
    refs = {spec.base_model for spec in specs}
    bases = {ref: recall_or_describe(ref, config.trust_remote_code) for ref in refs}
    views = [(place.view, place, None) for place in places_on_this_machine(config.actors)]
    actors = tuple(with_models(views, Profiles.of_earlier_runs(config.database_url), bases))
    view = ClusterView((), actors, bases, makespan=config.scheduler.makespan)
    return plan_jobs(specs, view, bases, config.scheduler.policy)
