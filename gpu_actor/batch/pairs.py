"""Preference pairs on their way through a shared batch: the task, its loss, and what the reference says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.contract.config import TrainingConfig


@dataclass(frozen=True)
class PairTask:
    """What makes a micro-batch one of preference pairs: its sequences are chosen, rejected, chosen, rejected ...

    Attributes:
        loss: The objective.
        numbers: Which pairs of the data set these are.
        nll_scale: What each token loss of the likelihood term is multiplied by: one over the number of those tokens
            in the whole optimizer step.
        references: The data set's log-probabilities under the reference; None where the loss has no reference.
    """

    loss: PreferenceLoss
    numbers: tuple[int, ...]
    nll_scale: float = 0.0
    references: ReferenceLogProbs | None = None

    @property
    def groups(self) -> int:
        """Sums of log-probabilities for each pair: chosen, rejected, and maybe the chosen side's prompt."""
        return 3 if self.loss.learns_prompt else 2


@dataclass(frozen=True)
class PreferenceLoss:
    """The settings of a preference objective, complete. Fields that an objective does not have are never read."""

    objective: str
    beta: float
    loss_type: str = "sigmoid"
    label_smoothing: float = 0.0
    cpo_alpha: float = 1.0
    gamma: float = 0.5

    @classmethod
    def of(cls, training: TrainingConfig) -> PreferenceLoss | None:
        """The settings of a job; None where its objective is supervised."""
        if training.objective == "sft":
            return None
        fields = ("beta", "loss_type", "label_smoothing", "cpo_alpha", "gamma")
        given = {name: getattr(training, name) for name in fields if getattr(training, name) is not None}
        return cls(training.objective, **given)

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares with a reference model."""
        return self.objective == "dpo"

    @property
    def learns_prompt(self) -> bool:
        """Whether the likelihood term takes the prompt along, as TRL's ORPO does."""
        return self.objective == "orpo"

    @property
    def learns_likelihood(self) -> bool:
        """Whether the objective has a likelihood term."""
        return self.objective in ("cpo", "orpo")

    @property
    def nll_weight(self) -> float:
        """Factor on the mean token loss of the chosen sides."""
        return {"cpo": self.cpo_alpha, "orpo": 1.0}.get(self.objective, 0.0)


class ReferenceLogProbs:
    """Log-probabilities of the answers of one data set's pairs under the reference; filled as they are needed.

    Attributes:
        weights: The reference adapter; None is the base model itself.
    """

    def __init__(self, weights: AdapterWeights | None, pairs: int) -> None:
        self.weights = weights
        self._values = np.zeros((pairs, 2), dtype=np.float64)
        self._filled = np.zeros(pairs, dtype=bool)

    def has(self, number: int) -> bool:
        """Whether a pair has been computed."""
        return bool(self._filled[number])

    def of(self, numbers: Sequence[int]) -> npt.NDArray[np.float64]:
        """The values of some pairs, [n, 2] for chosen and rejected.

        Raises:
            KeyError: One of them has not been computed.
        """
        wanted = list(numbers)
        if not self._filled[wanted].all():
            raise KeyError(f"no reference for some of the pairs {wanted}")
        return self._values[wanted]

    def put(self, number: int, chosen: float, rejected: float) -> None:
        """Keep the values of one pair."""
        self._values[number] = chosen, rejected
        self._filled[number] = True
