"""Learning-rate schedules: the factors that `transformers.get_scheduler` gives, without its imports.

The schedules of transformers lie beside its Trainer, which imports peft where that is installed, and with it
bitsandbytes and torch's compiler: more processor seconds than all the rest of an actor's start takes beside torch and
transformers themselves. A test compares every value here with theirs.
"""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gpu_actor.contract.config import SchedulerName


def make_schedule(name: SchedulerName, optimizer: Optimizer, warmup: int, total: int) -> LambdaLR:
    """The learning rate as a function of the optimizer step.

    Args:
        name: The schedule, by the names of transformers.
        optimizer: Whose learning rates it sets.
        warmup: Optimizer steps in which the rate rises from 0.
        total: All optimizer steps.
    """
    return LambdaLR(optimizer, partial(_factor, name=name, warmup=warmup, total=total))


def _factor(step: int, *, name: SchedulerName, warmup: int, total: int) -> float:
    """What the learning rate of the job is multiplied by at an optimizer step, counted from 0."""
    if name == "constant":
        return 1.0
    if step < warmup:
        return step / warmup
    if name == "constant_with_warmup":
        return 1.0
    steps = max(1, total - warmup)
    if name == "linear":
        return max(0.0, (total - step) / steps)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((step - warmup) / steps))))  # cosine
