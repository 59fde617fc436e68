"""Samples of KTO on their way through a shared batch: single answers, each wanted or not (arXiv 2402.01306).

The loss measures an answer against how far the policy has moved from the reference as a whole: a KL that is estimated
once for each micro-batch, from its prompts with the answers of its other samples, as TRL does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from gpu_actor.batch.reference_log_probs import ReferenceLogProbs
from gpu_actor.contract.config import TrainingConfig
from gpu_actor.data.records import IGNORE_INDEX
from gpu_actor.data.samples import Labelled, answer_start


@dataclass(frozen=True)
class KtoLoss:
    """The settings of KTO, complete."""

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    @classmethod
    def of(cls, training: TrainingConfig) -> KtoLoss | None:
        """The settings of a job; None where its objective is another."""
        if training.objective != "kto":
            return None
        fields = ("beta", "desirable_weight", "undesirable_weight")
        return cls(**{name: getattr(training, name) for name in fields if getattr(training, name) is not None})


class KlEstimate:
    """The KL of one micro-batch, which all its parts share, however it is split.

    Attributes:
        texts: What it is estimated from: the micro-batch's mismatched pairs.
    """

    def __init__(self, texts: Sequence[Labelled]) -> None:
        self.texts = texts
        self._value: float | None = None

    @property
    def known(self) -> bool:
        """Whether it has been computed."""
        return self._value is not None

    @property
    def value(self) -> float:
        """At least 0.

        Raises:
            RuntimeError: It has not been computed.
        """
        if self._value is None:
            raise RuntimeError("the KL of this micro-batch has not been estimated")
        return self._value

    def settle(self, *log_p: float) -> None:
        """Take in the log-probabilities of the texts' answers: first under the policy, then under the reference."""
        policy, reference = log_p[: len(self.texts)], log_p[len(self.texts) :]
        mean = sum(mine - theirs for mine, theirs in zip(policy, reference, strict=True)) / len(self.texts)
        self._value = 0.0 if mean < 0 else mean  # a NaN stays one, for the step to fail on


@dataclass(frozen=True)
class UnpairedTask:
    """What makes a micro-batch one of KTO.

    Attributes:
        loss: The objective.
        numbers: Which samples of the data set these are.
        desirable: Which of them are wanted.
        references: The data set's log-probabilities under the reference.
        kl: Of the whole micro-batch that this is, or is a part of.
        desirable_scale: One over the number of wanted answers in the whole optimizer step; 0 where there are none.
        undesirable_scale: The same of the others.
    """

    loss: KtoLoss
    numbers: tuple[int, ...]
    desirable: tuple[bool, ...]
    references: ReferenceLogProbs
    kl: KlEstimate
    desirable_scale: float
    undesirable_scale: float

    @property
    def width(self) -> int:
        """Sequences that belong together."""
        return 1

    def part(self, start: int, end: int) -> UnpairedTask:
        """The samples [start, end) alone."""
        return replace(self, numbers=self.numbers[start:end], desirable=self.desirable[start:end])


def mismatched(samples: Sequence[Labelled], most: int) -> list[Labelled]:
    """Every prompt with the answer of the sample before it, the first one with the last answer.

    Args:
        samples: Ids and labels; a prompt is what stands before the first label.
        most: Tokens to which a text is cut.
    """
    starts = [answer_start(labels) for _, labels in samples]
    return [
        _joined(samples[place][0][: starts[place]], samples[place - 1], starts[place - 1], most)
        for place in range(len(samples))
    ]


def _joined(prompt: npt.NDArray[np.int32], other: Labelled, start: int, most: int) -> Labelled:
    ids, labels = (part[start:] for part in other)
    unlearned = np.full(len(prompt), IGNORE_INDEX, dtype=np.int32)
    return np.concatenate([prompt, ids])[:most], np.concatenate([unlearned, labels])[:most]
