"""Every metric that Prometheus gets, in one list: the exporter and the Grafana dashboard are made from it.

No label grows with the number of jobs: what concerns one job is in the store and in files. `actor` is a place of the
cluster (`cpu:0`, `cuda:1`), of which there are as many as devices. Within half a minute Ray
drops the gauges of a place that is gone; its counters stay until the orchestrator ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter", "histogram"]
Unit = Literal["", "bytes", "seconds", "tokens", "ratio", "tokens/s"]
_MINUTES = (1, 3, 10, 30, 60, 300, 600, 1800, 3600, 4 * 3600, 24 * 3600, 7 * 24 * 3600)
_INSTANTS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: As Loray names it; Ray writes the prefix `ray_` before it, and `_total` behind that of a counter.
        kind: Its kind in Prometheus.
        group: The row of the dashboard that it stands in.
        title: Of its panel.
        description: What it says, for people.
        unit: Of its values.
        tags: Its labels.
        boundaries: Upper ends of a histogram's buckets.
    """

    name: str
    kind: Kind
    group: str
    title: str
    description: str
    unit: Unit = ""
    tags: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()


_ACTOR = ("actor",)
METRICS = (
    Metric("loray_jobs", "gauge", "Jobs", "Jobs by state", "Jobs of the job table.", "", ("state",)),
    Metric(
        "loray_job_queue_wait_seconds",
        "histogram",
        "Jobs",
        "Wait in the queue",
        "From joining the queue to being given to an actor.",
        "seconds",
        boundaries=_MINUTES,
    ),
    Metric(
        "loray_job_turnaround_seconds",
        "histogram",
        "Jobs",
        "Turnaround",
        "From submission to the finished adapter.",
        "seconds",
        boundaries=_MINUTES,
    ),
    Metric(
        "loray_job_retries",
        "counter",
        "Jobs",
        "Retries",
        "Jobs that went back into the queue: their actor was lost, or somebody asked for it.",
        "",
        ("cause",),
    ),
    Metric(
        "loray_decisions",
        "counter",
        "Scheduler",
        "Decisions",
        "What the scheduler decided: place, preempt, move, reject a job, load a base model.",
        "",
        ("kind",),
    ),
    Metric(
        "loray_decision_seconds",
        "histogram",
        "Scheduler",
        "Time of a decision",
        "What the scheduler took to make a plan.",
        "seconds",
        boundaries=_INSTANTS,
    ),
    Metric(
        "loray_tick_seconds", "gauge", "Scheduler", "Tick", "Duration of the orchestrator's latest tick.", "seconds"
    ),
    Metric(
        "loray_base_load_seconds",
        "histogram",
        "Scheduler",
        "Loads of base models",
        "From the start of an actor until its base model can train.",
        "seconds",
        boundaries=_MINUTES,
    ),
    Metric(
        "loray_actor_memory_bytes", "gauge", "Memory", "Memory in use", "Memory that an actor uses.", "bytes", _ACTOR
    ),
    Metric(
        "loray_actor_memory_peak_bytes",
        "gauge",
        "Memory",
        "Measured peak",
        "Highest memory of an actor in a shared batch.",
        "bytes",
        _ACTOR,
    ),
    Metric(
        "loray_actor_memory_predicted_bytes",
        "gauge",
        "Memory",
        "Predicted peak",
        "What the scheduler thinks that the adapters of an actor can make it use.",
        "bytes",
        _ACTOR,
    ),
    Metric("loray_actor_memory_limit_bytes", "gauge", "Memory", "Limit", "What an actor may use.", "bytes", _ACTOR),
    Metric(
        "loray_actor_out_of_memory",
        "counter",
        "Memory",
        "Out of memory",
        "Times that an actor ran out of memory or passed its limit, after which its batches are smaller.",
        "",
        _ACTOR,
    ),
    Metric(
        "loray_tokens_per_second",
        "gauge",
        "Training",
        "Speed",
        "Real tokens per second, all adapters of an actor together.",
        "tokens/s",
        _ACTOR,
    ),
    Metric("loray_trained_tokens", "counter", "Training", "Real tokens", "Tokens trained on.", "tokens", _ACTOR),
    Metric(
        "loray_padding_avoided_tokens",
        "counter",
        "Training",
        "Padding avoided",
        "Tokens of padding that the same micro-batches would have had as rows of equal length.",
        "tokens",
        _ACTOR,
    ),
    Metric(
        "loray_step_seconds",
        "gauge",
        "Training",
        "Step",
        "Mean duration of the latest shared batches.",
        "seconds",
        _ACTOR,
    ),
    Metric(
        "loray_batch_fill_ratio",
        "gauge",
        "Training",
        "Fill of shared batches",
        "Tokens in the latest shared batch, over the most that it may hold.",
        "ratio",
        _ACTOR,
    ),
    Metric("loray_batch_adapters", "gauge", "Training", "Adapters in a batch", "In the latest one.", "", _ACTOR),
    Metric("loray_adapters_resident", "gauge", "Training", "Adapters resident", "That are on an actor.", "", _ACTOR),
    Metric("loray_actors_lost", "counter", "Training", "Actors lost", "By how they were lost.", "", ("kind",)),
    Metric("loray_open_questions", "gauge", "Answers", "Open questions", "Whose answers are being made.", "", _ACTOR),
    Metric(
        "loray_generated_tokens", "counter", "Answers", "Generated tokens", "Of answers to questions.", "tokens", _ACTOR
    ),
)
