"""The micro-batches of one job: from sample numbers to what goes through the base model.

The scale of every loss is settled here, over the whole accumulated optimizer step, so that any split of a step
gives the same update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpu_actor.adapters.dropout import mix_seed
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.batch.pairs import PairTask, PreferenceLoss
from gpu_actor.batch.reference_log_probs import ReferenceLogProbs
from gpu_actor.batch.shared_batch import MicroBatch, count_loss_tokens
from gpu_actor.batch.unpaired import KlEstimate, KtoLoss, UnpairedTask, mismatched
from gpu_actor.contract.config import TrainingConfig
from gpu_actor.contract.objective_fields import PAIR_OBJECTIVES, REFERENCE_OBJECTIVES
from gpu_actor.data.dataset import LoadedDataset
from gpu_actor.training.sample_order import StepPlan

_DROPOUT_STREAM = 0x10_0000  # keeps dropout seeds apart from the other uses of a job's seed


@dataclass(frozen=True)
class _Source:
    """The samples, and what the reference says of them."""

    samples: Any  # one of AnySet
    references: ReferenceLogProbs | None


class MicroBatches:
    """Makes the micro-batches of one job's optimizer steps and evaluations."""

    def __init__(
        self, training: TrainingConfig, weights: AdapterWeights, data: LoadedDataset, reference: AdapterWeights | None
    ) -> None:
        """Prepare; nothing is computed.

        Args:
            training: Objective, batch size and seed.
            weights: The adapter in training.
            data: Its samples, by its objective.
            reference: The reference adapter; None is the base model itself.
        """
        self._training = training
        self._weights = weights
        self._loss = PreferenceLoss.of(training) or KtoLoss.of(training)
        needed = training.objective in REFERENCE_OBJECTIVES
        answers = 2 if training.objective in PAIR_OBJECTIVES else 1
        self._train, self._val = (
            _Source(samples, ReferenceLogProbs(reference, len(samples), answers) if needed else None)
            for samples in (data.train, data.val)
        )

    def of_step(self, number: int, plan: StepPlan, split: int, most: int | None = None) -> list[MicroBatch]:
        """The micro-batches of optimizer step `number` (from 0), in `split` parts each, of `most` tokens at most."""
        groups = plan.micro_batches
        first = number * self._training.gradient_accumulation_steps  # the last step of an epoch has fewer of them
        seed = self._training.seed + _DROPOUT_STREAM
        seeds = [mix_seed(seed, first + place) for place in range(len(groups))]
        return [part for whole in self._make(self._train, groups, seeds) for part in whole.parts(split, most)]

    def of_evaluation(self, split: int, most: int | None = None) -> list[MicroBatch]:
        """The held-out samples without dropout; the losses add up to the mean over all of them."""
        size = self._training.per_device_train_batch_size
        count = len(self._val.samples)
        groups = [tuple(range(start, min(start + size, count))) for start in range(0, count, size)]
        batches = self._make(self._val, groups, [None] * len(groups))
        return [part for whole in batches for part in whole.parts(split, most)]

    def _make(
        self, source: _Source, groups: Sequence[tuple[int, ...]], seeds: Sequence[int | None]
    ) -> list[MicroBatch]:
        if isinstance(self._loss, PreferenceLoss):
            return self._pairs(self._loss, source, groups, seeds)
        if isinstance(self._loss, KtoLoss):
            return self._unpaired(self._loss, source, groups, seeds)
        return self._supervised(source, groups, seeds)

    def _supervised(
        self, source: _Source, groups: Sequence[tuple[int, ...]], seeds: Sequence[int | None]
    ) -> list[MicroBatch]:
        samples = [[source.samples[i] for i in numbers] for numbers in groups]
        loss_tokens = count_loss_tokens([labels for group in samples for _, labels in group])
        return [
            MicroBatch(
                weights=self._weights,
                sequences=[ids for ids, _ in group],
                labels=[labels for _, labels in group],
                loss_scale=1.0 / loss_tokens,
                dropout_seeds=_each(seed, len(group)),
            )
            for group, seed in zip(samples, seeds, strict=True)
        ]

    def _pairs(
        self, loss: PreferenceLoss, source: _Source, groups: Sequence[tuple[int, ...]], seeds: Sequence[int | None]
    ) -> list[MicroBatch]:
        samples = [[source.samples[i] for i in numbers] for numbers in groups]
        chosen = [side for group in samples for side, _ in group]
        if loss.learns_prompt:
            nll_tokens = sum(len(ids) - 1 for ids, _ in chosen)
        else:
            nll_tokens = count_loss_tokens([labels for _, labels in chosen])
        return [
            MicroBatch(
                weights=self._weights,
                sequences=[ids for pair in group for ids, _ in pair],
                labels=[labels for pair in group for _, labels in pair],
                loss_scale=1.0 / len(chosen),
                dropout_seeds=_each(seed, 2 * len(group)),
                task=PairTask(loss, tuple(numbers), 1.0 / nll_tokens, source.references),
            )
            for group, numbers, seed in zip(samples, groups, seeds, strict=True)
        ]

    def _unpaired(
        self, loss: KtoLoss, source: _Source, groups: Sequence[tuple[int, ...]], seeds: Sequence[int | None]
    ) -> list[MicroBatch]:
        if source.references is None:
            raise RuntimeError("KTO has no reference")
        samples = [[source.samples[i] for i in numbers] for numbers in groups]
        wanted = [[desirable for _, desirable in group] for group in samples]
        count, good = sum(map(len, wanted)), sum(map(sum, wanted))
        made = []
        for group, numbers, seed, desirable in zip(samples, groups, seeds, wanted, strict=True):
            answers = [answer for answer, _ in group]
            task = UnpairedTask(
                loss=loss,
                numbers=tuple(numbers),
                desirable=tuple(desirable),
                references=source.references,
                kl=KlEstimate(mismatched(answers, self._training.cutoff_len)),
                desirable_scale=1.0 / good if good else 0.0,
                undesirable_scale=1.0 / (count - good) if count > good else 0.0,
            )
            made.append(
                MicroBatch(
                    weights=self._weights,
                    sequences=[ids for ids, _ in answers],
                    labels=[labels for _, labels in answers],
                    loss_scale=1.0 / count,
                    dropout_seeds=_each(seed, len(group)),
                    task=task,
                )
            )
        return made


def _each(seed: int | None, sequences: int) -> tuple[int, ...] | None:
    """A dropout seed for each sequence of a micro-batch."""
    return None if seed is None else tuple(mix_seed(seed, number) for number in range(sequences))
