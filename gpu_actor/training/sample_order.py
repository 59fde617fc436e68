"""Which samples an optimizer step trains on: a function of the step number alone.

Because nothing is remembered between steps, a job that is resumed at step k reads exactly what it would have read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from gpu_actor.adapters.dropout import mix_seed
from gpu_actor.contract.config import TrainingConfig
from gpu_actor.data.dataset import LoadedDataset, MixedSource


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step: its epoch (from 0) and the sample numbers of each of its micro-batches."""

    epoch: int
    micro_batches: tuple[tuple[int, ...], ...]


class DataCursor:
    """The order in which one job reads its samples: that of `transformers.Trainer` with the same seed.

    Of a mix, that of `Trainer` on the sets one behind the other, each repeated as often as its weight says.
    """

    def __init__(self, training: TrainingConfig, samples: int, mix: Sequence[MixedSource] = ()) -> None:
        """Count the steps.

        Args:
            training: Batch sizes, length of the run, order and seed.
            samples: How many there are.
            mix: The sets that they are of, one behind the other; none: an epoch takes each sample once.
        """
        self._training = training
        self._mix = mix
        self._samples = sum(source.per_epoch for source in mix) if mix else samples  # of an epoch
        self.steps_per_epoch = training.steps_per_epoch(self._samples)
        self.total_steps = training.total_steps(self._samples)
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
            self._order = self._of_mix(epoch) if self._mix else list(range(self._samples))
            if self._training.shuffle:
                # accelerate's SeedableRandomSampler, which Trainer uses: one permutation per epoch from seed + epoch
                generator = torch.Generator().manual_seed(self._training.seed + epoch)
                places = torch.randperm(self._samples, generator=generator).tolist()
                self._order = [self._order[place] for place in places]
            self._epoch = epoch
        return self._order

    def _of_mix(self, epoch: int) -> list[int]:
        """The samples that an epoch takes, set by set: all of a set as often as it goes, and some once more."""
        numbers: list[int] = []
        first = 0
        for place, source in enumerate(self._mix):
            whole, rest = divmod(source.per_epoch, source.samples)
            numbers += list(range(first, first + source.samples)) * whole
            numbers += [first + number for number in self._some_of(source.samples, rest, epoch, place)]
            first += source.samples
        return numbers

    def _some_of(self, samples: int, count: int, epoch: int, place: int) -> list[int]:
        """The part of a set that an epoch takes beyond its whole passes, in the set's order.

        Epoch by epoch they go on through seeded permutations of the set, so that none comes a second time before all
        have come once.
        """
        chosen: list[int] = []
        start = epoch * count
        while len(chosen) < count:
            turn, within = divmod(start + len(chosen), samples)
            generator = torch.Generator().manual_seed(mix_seed(self._training.seed + turn, place))
            permutation = torch.randperm(samples, generator=generator).tolist()
            chosen += permutation[within : within + count - len(chosen)]
        return sorted(chosen)


class MixCounts:
    """How many samples and tokens an optimizer step takes of each data set of a mix."""

    def __init__(self, data: LoadedDataset) -> None:
        """Prepare; of a single data set nothing is counted."""
        self._lengths = data.train.lengths()
        self._names = [source.name for source in data.mix]
        self._ends = np.cumsum([source.samples for source in data.mix])
        parts = np.split(self._lengths, self._ends[:-1]) if data.mix else [self._lengths]
        taken = [source.per_epoch / source.samples for source in data.mix] or [1.0]
        self.tokens_per_epoch = sum(float(part.sum()) * share for part, share in zip(parts, taken, strict=True))

    def figures(self, plan: StepPlan) -> dict[str, int]:
        """`samples/<name>` and `tokens/<name>` of an optimizer step; tokens as the data set has them."""
        if not self._names:
            return {}
        numbers = np.fromiter(chain.from_iterable(plan.micro_batches), dtype=np.int64)
        sources = np.searchsorted(self._ends, numbers, side="right")
        samples = np.bincount(sources, minlength=len(self._names))
        tokens = np.bincount(sources, self._lengths[numbers], minlength=len(self._names))
        found = {f"samples/{name}": int(count) for name, count in zip(self._names, samples, strict=True)}
        return found | {f"tokens/{name}": int(count) for name, count in zip(self._names, tokens, strict=True)}
