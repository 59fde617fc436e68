"""A job and an actor as clients see them: plain values under fixed names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gpu_actor.contract.report import TenantReport
from orchestrator.cluster.fleet import Fleet
from orchestrator.cluster.member import Member
from orchestrator.scheduler.view import ActorView
from orchestrator.store.records import JobRecord, Wish

_NO_PROGRESS: dict[str, Any] = {
    "step": 0,
    "total_steps": 0,
    "epoch": 0.0,
    "loss": None,
    "eval_loss": None,
    "learning_rate": None,
    "tokens": 0,
    "tokens_per_s": 0.0,
    "eta_s": None,
    "samples": 0,
    "truncated": 0,
    "dropped": 0,
    "unread_columns": "",
    "shortened": 0,
    "unreached": "",
    "unsaved": "",
    "notes": (),
    "longest": 0,
    "tokens_per_step": 0.0,
}
_WISHES = {
    Wish.CANCEL: "cancel",
    Wish.PAUSE: "pause",
    Wish.YIELD: "make room for others",
    Wish.FINISH: "stop early",
}


def progress_of(report: TenantReport) -> dict[str, Any]:
    """The counters of a report, as the store keeps them."""
    values = asdict(report)
    return {name: values[name] for name in _NO_PROGRESS}


def job_view(
    job: JobRecord,
    live: Mapping[str, Any] | None = None,
    losses: Sequence[float] = (),
    forecast: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A job as clients see it.

    Args:
        job: Its row.
        live: Progress that is newer than the row's.
        losses: While it runs, how its loss went.
        forecast: When it will be over (`finishes.Finishes.of`).
    """
    return {
        "id": job.id,
        "name": job.name,
        "owner": job.owner,
        "state": job.state.value,
        "base_model": job.spec.base_model,
        "priority": job.spec.queue.priority,
        "submitted_at": job.submitted_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "actor": job.actor,
        "attempt": job.attempt,
        "retries": job.retries,
        "reason": job.reason,
        "waiting_for": f"its next step boundary, to {_WISHES[job.wish]}" if job.wish else job.waiting_for,
        **_NO_PROGRESS,
        **(live or job.progress),
        "loss_curve": list(losses),
        "forecast": forecast,
        "output_dir": job.output_dir,
        "spec": job.spec.model_dump(mode="json"),
    }


def actor_views(fleet: Fleet, running: Sequence[JobRecord]) -> list[dict[str, Any]]:
    """Every place for an actor, as clients see it.

    Args:
        fleet: With the places and the actors.
        running: The jobs that train.
    """
    found = []
    for place in fleet.views():
        member = fleet.at(place.id)
        names = [job.name for job in running if member and job.actor == member.name]
        found.append(actor_view(place, member, names))
    return found


def actor_view(place: ActorView, member: Member | None, jobs: Sequence[str]) -> dict[str, Any]:
    """A place for an actor, and the actor in it, as clients see them.

    Args:
        place: The place as the scheduler sees it.
        member: The actor there.
        jobs: Names of the jobs on it.
    """
    report = member.report if member else None
    return {
        "name": place.name,
        "state": _state(place, member),
        "base_model": place.base_model or "",
        "device": place.shape.device,
        "node_id": member.place.node_id if member else None,
        "memory_limit": place.memory_limit or 0,
        "memory_used": report.memory_used if report else 0,
        "memory_peak": report.memory_peak if report else 0,
        "memory_free": report.memory_free if report else 0,
        "token_budget": report.token_budget if report else 0,
        "pressed": report.memory_shortages if report else 0,
        "base_bytes": report.base_bytes if report else 0,
        "tokens_per_s": report.tokens_per_s if report else 0.0,
        "step_seconds": report.step_seconds if report else 0.0,
        "batch_tokens": report.batch_tokens if report else 0,
        "batch_adapters": report.batch_adapters if report else 0,
        "open_requests": report.open_requests if report else 0,
        "jobs": list(jobs),
        "reason": place.reason or (report.reason if report else None),
    }


def _state(place: ActorView, member: Member | None) -> str:
    """`empty`, `starting`, `loading`, `ready`, `failed` (none can be started) or `lost` (out of reach)."""
    if member is None:
        return "failed" if place.reason else "empty"
    if member.trouble:
        return "lost"
    return member.report.state.value if member.report else "starting"
