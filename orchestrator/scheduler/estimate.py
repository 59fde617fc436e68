"""Bytes and seconds, guessed from configurations, and corrected by what was measured.

A guess (`prior_memory`, `prior_speed`) comes from shapes and sizes alone. `SpeedFit` and `MemoryFit` take in one
measurement after another by least squares and start from the guess, so that they are never without an answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpu_actor.contract import footprint
from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.footprint import LOSS_CHUNK
from orchestrator.scheduler.view import ActorShape, MemoryModel, SpeedModel

# Interpreter and libraries on a CPU. On an accelerator only allocated bytes are measured and counted: the limit leaves
# room for the rest (`gpu_actor.device.memory.accelerator_limit`).
RESERVE_BYTES = {"cpu": 640 * 2**20, "cuda": 0}

_FORGET = 0.99  # per measurement: about a hundred of them are remembered
_NOISE = 0.03**2  # variance of one relative error
_FIRST = 10  # measurements after which a fit is used to weigh the next ones
_LEAST = 1e-6  # of a coefficient, in parts of its guess


@dataclass(frozen=True)
class _Device:
    """Sustained speed of a kind of device; only for guesses."""

    flops: float
    bytes_per_second: float
    layer_seconds: float  # launches and Python, per layer and pass
    adapter_seconds: float


_DEVICES = {
    "cpu": _Device(1e11, 1e10, 5e-4, 5e-3),
    "cuda": _Device(1.2e14, 1.5e12, 4e-4, 2e-3),
}


def prior_memory(base: BaseDescription, shape: ActorShape) -> MemoryModel:
    """The memory of an actor, guessed from the shapes of its base model."""
    tokens = 2 * LOSS_CHUNK  # past it the logits no longer grow
    at, twice = (_activations(base, n, shape) for n in (tokens, 2 * tokens))
    per_token = (twice - at) / tokens
    fixed = footprint.base_bytes(base, shape.dtype_bytes, shape.quantization) + RESERVE_BYTES[device_kind(shape.device)]
    return MemoryModel(fixed + at - per_token * tokens, per_token, shape.token_budget)


def prior_speed(base: BaseDescription, shape: ActorShape) -> SpeedModel:
    """The speed of an actor, guessed: a frozen weight costs 2 operations a token forward and 2 backward."""
    device = _DEVICES[device_kind(shape.device)]
    read = 2 * footprint.base_bytes(base, shape.dtype_bytes, shape.quantization) / device.bytes_per_second
    flops = (6 if shape.checkpointing else 4) * base.parameters * shape.dtype_bytes / 2
    return SpeedModel(
        step_seconds=read + 2 * base.num_layers * device.layer_seconds,
        token_seconds=flops / device.flops,
        adapter_seconds=device.adapter_seconds,
    )


def saturation_tokens(speed: SpeedModel, *, overhead: float = 0.1) -> int:
    """Tokens of a shared batch at which its fixed cost is down to `overhead` of its time: more of them gain less.

    Args:
        speed: As fitted.
        overhead: Share of the fixed cost that is accepted.
    """
    wanted = speed.step_seconds * (1 - overhead) / overhead
    return max(1, math.ceil(wanted / max(speed.token_seconds, 1e-12)))


class _LeastSquares:
    """Least squares for y = x @ theta with positive theta, scaled by its first guess; older measurements fade.

    The guess keeps its weight: it decides what the measurements of late cannot tell apart.
    """

    def __init__(self, guess: Sequence[float], trust: Sequence[float]) -> None:
        self._scale = np.array([max(value, 1e-12) for value in guess])
        self._theta = np.ones(len(guess))
        self._guess: NDArray[np.float64] = np.diag(1.0 / np.square(trust))
        self._measured: NDArray[np.float64] = np.zeros_like(self._guess)
        self._aim = np.zeros(len(guess))
        self._observed = 0

    def observe(self, inputs: Sequence[float], measured: float) -> None:
        """Take in one measurement. Its error relative to what was expected counts, so that long steps weigh no more.

        The first ones are set against themselves, as the guess may be far off. To go on like that would make much of
        steps that happened to be fast: under noise the fit would lie below the mean.
        """
        row = np.array(inputs) * self._scale
        size = measured if self._observed < _FIRST else float(row @ self._theta)
        self._observed += 1
        row, relative = row / size, measured / size
        self._measured = _FORGET * self._measured + np.outer(row, row) / _NOISE
        self._aim = _FORGET * self._aim + relative * row / _NOISE
        self._theta = _non_negative(self._measured + self._guess, self._aim + self._guess.sum(axis=1))

    def relative_error(self, coefficient: int) -> float:
        """Standard error of a coefficient over its value."""
        covariance = np.linalg.inv(self._measured + self._guess)
        return float(math.sqrt(covariance[coefficient, coefficient]) / self._theta[coefficient])

    @property
    def values(self) -> list[float]:
        """The coefficients."""
        return [float(value) for value in self._theta * self._scale]


def _non_negative(matrix: NDArray[np.float64], aim: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solves `matrix @ theta = aim`; a coefficient that would be negative is left out and the rest solved anew.

    To cut it off without that leaves the others too large, and from one measurement to the next without bound.
    """
    kept = np.arange(len(aim))
    while True:
        solution = np.linalg.solve(matrix[np.ix_(kept, kept)], aim[kept])
        if len(kept) == 1 or (solution >= 0).all():
            break
        kept = np.delete(kept, int(np.argmin(solution)))
    theta = np.full(len(aim), _LEAST)
    theta[kept] = np.maximum(solution, _LEAST)
    return theta


class SpeedFit:
    """a, b and c of one device with one base model, corrected by every measured step."""

    def __init__(self, prior: SpeedModel) -> None:
        """Starts from a guess, which may be wrong by a factor of several."""
        self._fit = _LeastSquares((prior.step_seconds, prior.token_seconds, prior.adapter_seconds), (5.0, 5.0, 5.0))

    def observe(self, tokens: float, adapters: int, seconds: float) -> SpeedModel:
        """Take in a measured shared batch; returns the model after it.

        Args:
            tokens: Its real tokens.
            adapters: Adapters in it.
            seconds: Its duration.
        """
        if seconds > 0 and tokens > 0:
            self._fit.observe((1.0, tokens, adapters), seconds)
        return self.model

    @property
    def doubt(self) -> float:
        """Relative standard error of a, the fixed cost: large as long as all batches were alike."""
        return self._fit.relative_error(0)

    @property
    def model(self) -> SpeedModel:
        """The speed by what is known now."""
        return SpeedModel(*self._fit.values)


class MemoryFit:
    """The memory model of one device with one base model, corrected by measured peaks."""

    def __init__(self, prior: MemoryModel, margin: float = 0.0) -> None:
        """Starts from a guess, or from what an earlier fit has found.

        Args:
            prior: The guess.
            margin: Of the earlier fit.
        """
        self._prior = prior
        self._fit = _LeastSquares((prior.fixed_bytes, prior.bytes_per_token), (0.2, 0.5))
        self._worst = margin

    def observe(self, tokens: float, adapter_bytes: float, peak_bytes: float) -> MemoryModel:
        """Take in the measured peak of shared batches; returns the model after it.

        Args:
            tokens: Of the largest shared batch while the peak was measured.
            adapter_bytes: Weights, gradients and moments of the adapters that were there.
            peak_bytes: As the device reported it.
        """
        net = peak_bytes - adapter_bytes
        if net > 0:
            self._fit.observe((1.0, tokens), net)
            fixed, per_token = self._fit.values
            self._worst = max(0.9 * self._worst, net - fixed - per_token * tokens)
        return self.model

    @property
    def model(self) -> MemoryModel:
        """The memory by what is known now."""
        fixed, per_token = self._fit.values
        return replace(self._prior, fixed_bytes=fixed, bytes_per_token=per_token)

    @property
    def margin(self) -> float:
        """Bytes by which the latest measurements have gone above the model."""
        return max(0.0, self._worst)


def device_kind(device: str) -> str:
    """`cuda` of `cuda:1`."""
    return device.partition(":")[0]


def _activations(base: BaseDescription, tokens: int, shape: ActorShape) -> int:
    return footprint.activation_bytes(base, tokens, shape.dtype_bytes, checkpointing=shape.checkpointing)
