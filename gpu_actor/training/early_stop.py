"""When a job stops before its last step: it diverges, or it over-fits. Opt-in; a function of the job's own numbers.

What is watched is kept in the checkpoint, so that a job that was moved or restarted stops at the very same step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpu_actor.contract.config import EarlyStopConfig

START_STEPS = 5  # optimizer steps in which a job's start is taken
_SMOOTH = 0.2  # weight of the newest loss in the running mean


@dataclass(frozen=True)
class Watch:
    """What early stopping remembers of a run.

    Attributes:
        mean_loss: Running mean of the training loss; None before the first step.
        start_loss: The lowest that it was in the first steps: one that diverges at once has no better start.
        best_loss: The lowest evaluation loss so far.
        best_step: Optimizer step of it.
        stale: Evaluations since then.
    """

    mean_loss: float | None = None
    start_loss: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    stale: int = 0

    def after_step(self, step: int, loss: float) -> Watch:
        """After optimizer step `step` (from 1) with this loss."""
        mean = loss if self.mean_loss is None else self.mean_loss + _SMOOTH * (loss - self.mean_loss)
        start = mean if self.start_loss is None else min(mean, self.start_loss)
        return replace(self, mean_loss=mean, start_loss=start if step <= START_STEPS else self.start_loss)

    def after_evaluation(self, step: int, eval_loss: float, min_delta: float) -> Watch:
        """After an evaluation at optimizer step `step`."""
        if self.best_loss is None or eval_loss < self.best_loss - min_delta:
            return replace(self, best_loss=eval_loss, best_step=step, stale=0)
        return replace(self, stale=self.stale + 1)


def diverged(config: EarlyStopConfig, watch: Watch, step: int, warmup_steps: int) -> str | None:
    """Why a run is hopeless, in words; None while it is not.

    Args:
        config: What the job asks for.
        watch: What was seen.
        step: Optimizer steps made.
        warmup_steps: Of them, those in which the learning rate rises.
    """
    if config.diverged_above is None or watch.mean_loss is None or watch.start_loss is None:
        return None
    if step <= max(START_STEPS, warmup_steps) or watch.mean_loss <= config.diverged_above * watch.start_loss:
        return None
    return (
        f"diverged: the loss (running mean {watch.mean_loss:.4g}) is more than early_stop.diverged_above = "
        f"{config.diverged_above:g} times its start ({watch.start_loss:.4g}) at optimizer step {step}; lower "
        f"training.learning_rate or add warm-up"
    )


def overfitted(config: EarlyStopConfig, watch: Watch) -> str | None:
    """Why going on gains nothing, in words; None while it may."""
    if config.patience is None or watch.stale < config.patience:
        return None
    return (
        f"stopped early: the evaluation loss has not improved on {watch.best_loss:.4g} by more than "
        f"early_stop.min_delta = {config.min_delta:g} in {watch.stale} evaluations; the adapter is that of step "
        f"{watch.best_step}"
    )
