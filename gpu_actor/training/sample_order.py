"""Which samples an optimizer step trains on: a function of the step number alone.

Because nothing is remembered between steps, a job that is resumed at step k reads exactly what it would have read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gpu_actor.contract.config import TrainingConfig


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step: its epoch (from 0) and the sample numbers of each of its micro-batches."""

    epoch: int
    micro_batches: tuple[tuple[int, ...], ...]


class DataCursor:
    """The order in which one job reads its samples: that of `transformers.Trainer` with the same seed."""

    def __init__(self, training: TrainingConfig, samples: int) -> None:
        self._training = training
        self._samples = samples
        self.steps_per_epoch = training.steps_per_epoch(samples)
        self.total_steps = training.total_steps(samples)
        self._epoch = -1
        self._order: list[int] = []

    def step(self, number: int) -> StepPlan:
        """The plan of optimizer step `number`, counted from 0 over the whole run."""
        epoch, within = divmod(number, self.steps_per_epoch)
        order = self._order_of(epoch)
        size = self._training.per_device_train_batch_size
        group = size * self._training.gradient_accumulation_steps
        numbers = order[within * group : (within + 1) * group]
        return StepPlan(epoch, tuple(tuple(numbers[i : i + size]) for i in range(0, len(numbers), size)))

    def epoch_after(self, number: int) -> float:
        """Epochs made when `number` optimizer steps are done, counted in micro-batches as `Trainer` does."""
        whole, steps = divmod(number, self.steps_per_epoch)
        micro_batches = math.ceil(self._samples / self._training.per_device_train_batch_size)
        return whole + steps * self._training.gradient_accumulation_steps / micro_batches

    def ends_epoch(self, number: int) -> bool:
        """Whether the `number`-th optimizer step (counted from 1) is the last of an epoch or of the run."""
        return number % self.steps_per_epoch == 0 or number == self.total_steps

    def _order_of(self, epoch: int) -> list[int]:
        if epoch != self._epoch:
            if self._training.shuffle:
                # accelerate's SeedableRandomSampler, which Trainer uses: one permutation per epoch from seed + epoch
                generator = torch.Generator().manual_seed(self._training.seed + epoch)
                self._order = torch.randperm(self._samples, generator=generator).tolist()
            else:
                self._order = list(range(self._samples))
            self._epoch = epoch
        return self._order
