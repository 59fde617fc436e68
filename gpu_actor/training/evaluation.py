"""The loss on held-out samples: forward only, each micro-batch by itself, smaller where memory is short."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import torch

from gpu_actor.batch.shared_batch import MicroBatch, pack
from gpu_actor.device.failures import is_out_of_memory
from gpu_actor.losses.objectives import StepSums
from gpu_actor.model.base_model import BaseModel
from gpu_actor.training.attempts import attempt, too_long
from gpu_actor.training.references import run_ahead


def evaluate(
    base: BaseModel, micro_batches: Sequence[MicroBatch], release: Callable[[], None]
) -> tuple[float, dict[str, float]]:
    """Sums of the scaled losses and figures, each micro-batch in a forward of its own, smaller where it must be.

    Args:
        base: The base model.
        micro_batches: Of one job, without dropout.
        release: Gives idle memory back to the device; called before a smaller try.

    Raises:
        OutOfMemoryError: A single sample does not fit.
    """
    total, figures = 0.0, dict[str, float]()
    waiting = deque(micro_batches)
    while waiting:
        micro_batch = waiting.popleft()
        outcome = attempt(partial(_evaluate_one, base, micro_batch))
        if not isinstance(outcome, Exception):
            loss, more = outcome
            total += loss
            figures = {name: figures.get(name, 0.0) + value for name, value in more.items()}
        elif not is_out_of_memory(outcome):
            raise outcome
        elif micro_batch.samples == 1:
            raise too_long([micro_batch], outcome)
        else:
            release()
            waiting.extendleft(reversed(micro_batch.parts(2)))
    return total, figures


def _evaluate_one(base: BaseModel, micro_batch: MicroBatch) -> tuple[float, dict[str, float]]:
    sums = StepSums()
    run_ahead([micro_batch], base)
    with torch.no_grad():
        sums.add(*base.losses(pack([micro_batch], base.device)))
    return sums.read()
