"""Gives Prometheus the metrics of `metric_list`, through Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.util import metrics as ray_metrics

from gpu_actor.contract.report import ActorReport, TenantState
from orchestrator.jobs.states import JobState
from orchestrator.reporting.metric_list import METRICS, Metric
from orchestrator.scheduler.view import Plan

_ON_AN_ACTOR = (TenantState.PREPARING, TenantState.TRAINING)
_OF_ACTORS: Mapping[str, Callable[[ActorReport], float]] = {
    "loray_actor_memory_bytes": lambda report: report.memory_used,
    "loray_actor_memory_peak_bytes": lambda report: report.memory_peak,
    "loray_actor_memory_limit_bytes": lambda report: report.memory_limit,
    "loray_tokens_per_second": lambda report: report.tokens_per_s,
    "loray_step_seconds": lambda report: report.step_seconds,
    "loray_batch_fill_ratio": lambda report: report.batch_tokens / max(1, report.token_budget),
    "loray_batch_adapters": lambda report: report.batch_adapters,
    "loray_adapters_resident": lambda report: sum(tenant.state in _ON_AN_ACTOR for tenant in report.tenants),
    "loray_open_questions": lambda report: report.open_requests,
}
_TOTALS: Mapping[str, Callable[[ActorReport], int]] = {  # since the actor started
    "loray_trained_tokens": lambda report: report.trained_tokens,
    "loray_padding_avoided_tokens": lambda report: report.padding_avoided,
    "loray_generated_tokens": lambda report: report.generated_tokens,
    "loray_actor_out_of_memory": lambda report: report.memory_shortages,
}


@dataclass(frozen=True)
class ActorMetrics:
    """What metrics say of one actor.

    Attributes:
        name: Its name, new at each start.
        place: Where it is.
        report: Its latest report.
        load_seconds: What it took to load the base model, if this process has seen it.
        predicted_bytes: The memory that its adapters can make it use, as the scheduler thinks; 0: not known.
    """

    name: str
    place: str
    report: ActorReport
    load_seconds: float | None
    predicted_bytes: float


class Metrics:
    """The metrics of one orchestrator."""

    def __init__(self) -> None:
        self._metrics = {metric.name: _make(metric) for metric in METRICS}
        self._places: set[str] = set()  # that had an actor at the latest tick
        self._loaded: set[str] = set()  # actors whose loads were noted, of those that are there
        self._counted: dict[str, dict[str, int]] = {}  # totals of the actors that are there, by their boot ids

    def jobs(self, counts: Mapping[JobState, int]) -> None:
        """Note how many jobs there are in each state."""
        for state, count in counts.items():
            self._metrics["loray_jobs"].set(count, {"state": state.value})

    def actors(self, states: Iterable[ActorMetrics]) -> None:
        """Note the state of every actor."""
        by_place = {state.place: state for state in states}
        for place in self._places | set(by_place):
            state = by_place.get(place)
            for name, value_of in _OF_ACTORS.items():  # 0 where there is no actor any more
                self._metrics[name].set(value_of(state.report) if state else 0, {"actor": place})
            predicted = state.predicted_bytes if state else 0
            self._metrics["loray_actor_memory_predicted_bytes"].set(predicted, {"actor": place})
        for state in by_place.values():
            if state.load_seconds is not None and state.name not in self._loaded:
                self._loaded.add(state.name)
                self._metrics["loray_base_load_seconds"].observe(state.load_seconds)
            for name, total_of in _TOTALS.items():
                self._count(name, state, total_of(state.report))
        self._places = set(by_place)
        self._loaded &= {state.name for state in by_place.values()}
        self._counted = {state.report.boot_id: self._counted[state.report.boot_id] for state in by_place.values()}

    def _count(self, name: str, state: ActorMetrics, total: int) -> None:
        """Count what an actor has done since its report before."""
        counted = self._counted.setdefault(state.report.boot_id, {})
        grown = total - counted.get(name, 0)
        if grown > 0:
            self._metrics[name].inc(grown, {"actor": state.place})
            counted[name] = total

    def actor_lost(self, kind: str) -> None:
        """Count a lost actor."""
        self._metrics["loray_actors_lost"].inc(1, {"kind": kind})

    def decided(self, plan: Plan, seconds: float) -> None:
        """Note a plan, and what it took to make it."""
        self._metrics["loray_decision_seconds"].observe(seconds)
        decisions = {
            "place": plan.placements,
            "preempt": plan.preemptions,
            "move": plan.moves,
            "reject": plan.rejections,
            "load base": plan.rehosts,
        }
        for kind, made in decisions.items():
            if made:
                self._metrics["loray_decisions"].inc(len(made), {"kind": kind})

    def tick(self, seconds: float) -> None:
        """Note how long a tick took."""
        self._metrics["loray_tick_seconds"].set(seconds)

    def assigned(self, waited_s: float) -> None:
        """Note a job that was given to an actor."""
        self._metrics["loray_job_queue_wait_seconds"].observe(waited_s)

    def retried(self, cause: str) -> None:
        """Count a job that went back into the queue: `actor lost` or `asked for`."""
        self._metrics["loray_job_retries"].inc(1, {"cause": cause})

    def succeeded(self, turnaround_s: float) -> None:
        """Note a finished job."""
        self._metrics["loray_job_turnaround_seconds"].observe(turnaround_s)


def _make(metric: Metric) -> Any:
    made = {"description": metric.description, "tag_keys": metric.tags}
    if metric.kind == "histogram":
        return ray_metrics.Histogram(metric.name, boundaries=list(metric.boundaries), **made)
    kind = ray_metrics.Gauge if metric.kind == "gauge" else ray_metrics.Counter
    return kind(metric.name, **made)
