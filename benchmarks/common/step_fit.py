"""Least squares of measured steps: T = a + b * tokens + c * adapters. Needs numpy and the engine's contract only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpu_actor.contract.report import StepSample


def fit(samples: Sequence[StepSample]) -> tuple[float, float, float, float]:
    """a, b and c in seconds, none of them negative, by their relative errors; and the mean of those."""
    seconds = np.array([sample.seconds for sample in samples])
    inputs = np.array([(1.0, sample.tokens, sample.adapters) for sample in samples]) / seconds[:, None]
    kept = [0, 1, 2]
    while True:
        found, *_ = np.linalg.lstsq(inputs[:, kept], np.ones(len(samples)), rcond=None)
        if (found >= 0).all():
            break
        kept.pop(int(np.argmin(found)))
    a, b, c = (float(found[kept.index(place)]) if place in kept else 0.0 for place in range(3))
    return a, b, c, float(np.abs(inputs @ np.array([a, b, c]) - 1.0).mean())
