"""An optimizer step that was taken, whose numbers are still on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from gpu_actor.adapters.forbidden_targets import endings
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.contract.errors import TrainingError
from gpu_actor.losses.objectives import StepSums


@dataclass(frozen=True)
class TakenStep:
    """What is known of an optimizer step before its numbers are read.

    Attributes:
        number: Of the step, from 1.
        learning_rate: It was taken with.
        tokens: Real tokens of its samples.
        names: Of the sums: the loss, and the figures that are logged beside it.
        values: Floating-point [sums + 1 + layers]: the sums, the gradient's norm, and in the first step for every
            layer whether a gradient has reached it.
    """

    number: int
    learning_rate: float
    tokens: int
    names: tuple[str, ...]
    values: torch.Tensor

    @classmethod
    def of(
        cls,
        number: int,
        learning_rate: float,
        tokens: int,
        sums: StepSums,
        norm: torch.Tensor,
        weights: AdapterWeights,
    ) -> TakenStep:
        """Put together what is to be read; `weights` still have the gradient of the step."""
        summed = sums.stacked()
        parts = [summed, norm.to(summed.dtype)[None]]
        if number == 1:
            parts.append(weights.reached().to(summed.dtype))
        return cls(number, learning_rate, tokens, sums.names, torch.cat(parts))

    @property
    def bad(self) -> torch.Tensor:
        """1.0 where the loss or the norm is not finite, else 0.0: a step that AdamW must not make (`found_inf`)."""
        checked = torch.stack([self.values[0], self.values[len(self.names)]])
        return (~checked.isfinite().all()).to(torch.float32)

    def read(self, values: Sequence[float]) -> StepValues:
        """Of the numbers that were `values` on the device.

        Raises:
            TrainingError: The loss or the gradient is not finite.
        """
        count = len(self.names)
        found = StepValues(values[0], values[count], dict(zip(self.names[1:], values[1:count], strict=True)))
        for what, value in (("loss", found.loss), ("gradient norm", found.norm)):
            if not math.isfinite(value):
                raise TrainingError(
                    f"the {what} became {value} at optimizer step {self.number} (learning rate "
                    f"{self.learning_rate:.3g}); lower training.learning_rate, add warm-up, or look for damaged "
                    f"samples; the last checkpoint is kept"
                )
        return found

    def unreached(self, values: Sequence[float], weights: AdapterWeights) -> str:
        """Of the first step, the layers whose gradient is zero, in words of bounded length; empty if there are none."""
        reached = values[len(self.names) + 1 :]
        names = [plan.name for plan, hit in zip(weights.plans.values(), reached, strict=True) if not hit]
        return f"{len(names)} of {len(weights.plans)} layers ({endings(names)})" if names else ""


@dataclass(frozen=True)
class StepValues:
    """The numbers of an optimizer step.

    Attributes:
        loss: Of all its micro-batches.
        norm: Of the gradient, before it was clipped.
        figures: What is logged beside the loss, by name.
    """

    loss: float
    norm: float
    figures: Mapping[str, float] = field(default_factory=dict)
