"""Loss curves of jobs that nobody trains: rows like those of `metrics.jsonl`, with noise, drawn from a seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.scheduler.room import Floats
from orchestrator.simulation.trace import TraceJob

Rows = Sequence[Mapping[str, Any]]

_POINTS = 50  # of the training losses at most that are evenly spread, and as many that are so by their logarithm
_EVALUATIONS = 20
_NOISE, _EVAL_NOISE = 0.06, 0.02  # sigma of the logarithm of a training loss and of an evaluation
_DIVERGES, _OVERFITS = 0.1, 0.3  # share of the jobs


def draw_curves(jobs: Sequence[TraceJob], seed: int) -> dict[str, Rows]:
    """A curve for each job, by its name.

    The loss falls by a power law to a floor, which differs from job to job within a grid. A tenth of the jobs diverge
    at some time, and the evaluation losses of three tenths rise again. The first steps have the most losses, so that
    one is known at every rung.

    Args:
        jobs: Of a trace.
        seed: Of all random numbers.
    """
    random = np.random.default_rng([seed, 2])
    floors: dict[str, float] = {}
    curves: dict[str, Rows] = {}
    for job in jobs:
        shared = floors.setdefault(job.grid or job.job, float(random.uniform(0.6, 1.6)))
        floor = shared * math.exp(random.normal(0.0, 0.12))
        fall = float(random.uniform(0.5, 1.2)), float(random.uniform(0.02, 0.1)) * job.steps
        breaks = float(random.uniform(0.02, 0.4)) if random.random() < _DIVERGES else math.inf
        turns = float(random.uniform(0.2, 0.7)) if random.random() < _OVERFITS else math.inf
        curves[job.job] = _rows(job.steps, floor, fall, breaks, turns, random)
    return curves


def _rows(
    steps: int, floor: float, fall: tuple[float, float], breaks: float, turns: float, random: np.random.Generator
) -> Rows:
    """One curve.

    Args:
        steps: Of the job.
        floor: What its loss falls to.
        fall: Exponent of the power law, and steps after which it sets in.
        breaks: Share of the steps after which it diverges.
        turns: Share of them after which it over-fits.
        random: For the noise.
    """
    power, onset = fall
    most, last = min(steps, _POINTS), math.log(steps)
    trained = np.unique(np.concatenate([np.linspace(1, steps, most), np.exp(np.linspace(0, last, most))]).round())
    evaluated = np.unique(np.linspace(steps / _EVALUATIONS, steps, _EVALUATIONS).round().clip(1))

    def smooth(at: Floats) -> Floats:
        falls = floor + 1.5 * (1 + at / onset) ** -power
        loss: Floats = falls * (1 + 20 * np.maximum(0.0, at / steps - breaks))
        return loss

    losses = smooth(trained) * np.exp(random.normal(0.0, _NOISE, len(trained)))
    unseen = smooth(evaluated) * (1 + 0.5 * np.maximum(0.0, evaluated / steps - turns))
    unseen *= np.exp(random.normal(0.0, _EVAL_NOISE, len(evaluated)))
    rows: list[Mapping[str, Any]] = [
        *({"step": int(step), "loss": loss} for step, loss in zip(trained, losses.tolist(), strict=True)),
        *({"step": int(step), "eval_loss": loss} for step, loss in zip(evaluated, unseen.tolist(), strict=True)),
    ]
    return sorted(rows, key=lambda row: row["step"])
