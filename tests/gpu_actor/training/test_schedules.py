"""Schedules are transformers' to the last digit, and what an actor imports brings no PEFT along."""

import subprocess
import sys
from typing import get_args

import pytest
import torch
from transformers import get_scheduler

from gpu_actor.contract.config import SchedulerName
from gpu_actor.training.schedules import make_schedule


def optimizer():
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)


@pytest.mark.parametrize("name", get_args(SchedulerName))
@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 7), (3, 7), (7, 7), (9, 7), (1, 100)])
def test_every_rate_is_that_of_transformers(name, warmup, total):
    mine, theirs = optimizer(), optimizer()
    schedule = make_schedule(name, mine, warmup, total)
    oracle = get_scheduler(name, theirs, num_warmup_steps=warmup, num_training_steps=total)
    for _ in range(total + 3):
        assert schedule.get_last_lr() == oracle.get_last_lr()
        for optimizer_, schedule_ in ((mine, schedule), (theirs, oracle)):
            optimizer_.step()
            schedule_.step()
    assert schedule.state_dict().keys() == oracle.state_dict().keys()


@pytest.mark.slow
def test_an_actor_imports_neither_peft_nor_what_that_brings():
    script = (
        "import gpu_actor.hosting.host, sys, transformers.models.llama.modeling_llama\n"
        "print([name for name in ('peft', 'bitsandbytes', 'datasets', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
