"""Preference pairs on their way through a shared batch: the task and its loss."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpu_actor.batch.reference_log_probs import ReferenceLogProbs
from gpu_actor.contract.config import TrainingConfig
from gpu_actor.contract.objective_fields import PAIR_OBJECTIVES, REFERENCE_OBJECTIVES


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
    def width(self) -> int:
        """Sequences that belong together."""
        return 2

    def part(self, start: int, end: int) -> PairTask:
        """The pairs [start, end) alone."""
        return replace(self, numbers=self.numbers[start:end])

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
        """The settings of a job; None where its objective has no pairs."""
        if training.objective not in PAIR_OBJECTIVES:
            return None
        fields = ("beta", "loss_type", "label_smoothing", "cpo_alpha", "gamma")
        given = {name: getattr(training, name) for name in fields if getattr(training, name) is not None}
        return cls(training.objective, **given)

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares with a reference model."""
        return self.objective in REFERENCE_OBJECTIVES

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
