"""Metrics for Prometheus, in one list.

No tag grows with the number of jobs: what concerns one job is in the store and in files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ray.util import metrics as ray_metrics

from gpu_actor.contract.report import ActorReport
from orchestrator.jobs.states import JobState


@dataclass(frozen=True)
class Metric:
    """One metric; Ray writes its name with the prefix `ray_`."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    description: str
    tags: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()


METRICS = (
    Metric("loray_jobs", "gauge", "Jobs by state.", ("state",)),
    Metric("loray_actor_memory_bytes", "gauge", "Memory in use by an actor.", ("actor",)),
    Metric("loray_actor_memory_limit_bytes", "gauge", "Memory that an actor may use.", ("actor",)),
    Metric("loray_tokens_per_second", "gauge", "Real tokens per second, all adapters together.", ("actor",)),
    Metric("loray_step_seconds", "gauge", "Mean duration of the latest shared batches.", ("actor",)),
    Metric("loray_batch_adapters", "gauge", "Adapters in the latest shared batch.", ("actor",)),
    Metric("loray_actors_lost", "counter", "Actors that were lost, by kind.", ("kind",)),
    Metric("loray_tick_seconds", "gauge", "Duration of the latest tick."),
    Metric(
        "loray_job_turnaround_seconds",
        "histogram",
        "From submission to the finished adapter.",
        (),
        (10, 30, 60, 300, 600, 1800, 3600, 4 * 3600, 24 * 3600, 7 * 24 * 3600),
    ),
)
_OF_ACTORS: Mapping[str, Callable[[ActorReport], float]] = {
    "loray_actor_memory_bytes": lambda report: report.memory_used,
    "loray_actor_memory_limit_bytes": lambda report: report.memory_limit,
    "loray_tokens_per_second": lambda report: report.tokens_per_s,
    "loray_step_seconds": lambda report: report.step_seconds,
    "loray_batch_adapters": lambda report: report.batch_adapters,
}
_KINDS: Mapping[str, Any] = {"gauge": ray_metrics.Gauge, "counter": ray_metrics.Counter}


class Metrics:
    """The metrics of one orchestrator."""

    def __init__(self) -> None:
        self._metrics = {metric.name: _make(metric) for metric in METRICS}
        self._places: set[str] = set()  # that had an actor at the latest tick

    def jobs(self, counts: Mapping[JobState, int]) -> None:
        """Note how many jobs there are in each state."""
        for state, count in counts.items():
            self._metrics["loray_jobs"].set(count, {"state": state.value})

    def actors(self, reports: Iterable[tuple[str, ActorReport]]) -> None:
        """Note the state of every actor, under the name of its place (the actor's own name is new at each start)."""
        by_place = dict(reports)
        for place in self._places | set(by_place):
            report = by_place.get(place)
            for name, value_of in _OF_ACTORS.items():  # 0 where there is no actor any more
                self._metrics[name].set(value_of(report) if report else 0, {"actor": place})
        self._places = set(by_place)

    def actor_lost(self, kind: str) -> None:
        """Count a lost actor."""
        self._metrics["loray_actors_lost"].inc(1, {"kind": kind})

    def tick(self, seconds: float) -> None:
        """Note how long a tick took."""
        self._metrics["loray_tick_seconds"].set(seconds)

    def succeeded(self, turnaround_s: float) -> None:
        """Note a finished job."""
        self._metrics["loray_job_turnaround_seconds"].observe(turnaround_s)


def _make(metric: Metric) -> Any:
    if metric.kind == "histogram":
        return ray_metrics.Histogram(
            metric.name, description=metric.description, boundaries=list(metric.boundaries), tag_keys=metric.tags
        )
    return _KINDS[metric.kind](metric.name, description=metric.description, tag_keys=metric.tags)
