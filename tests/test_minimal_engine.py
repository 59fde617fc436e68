"""The engine in one file (docs/minimal_engine.py) does what it says, and what PEFT does."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from support.repository import ROOT

SCRIPT = ROOT / "docs" / "minimal_engine.py"
JOBS = [(8, 16.0, 1e-2, 1), (4, 8.0, 3e-3, 2)]  # rank, alpha, learning rate, seed
STEPS = 6


def load_script():
    spec = importlib.util.spec_from_file_location("minimal_engine", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_an_adapter_is_the_same_alone_to_the_bit():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=True)
    *rows, last = done.stdout.splitlines()
    assert len(rows) == 3
    assert last.endswith("the same to the bit: True")


def test_its_losses_are_those_of_peft():
    engine = load_script()
    together = engine.train(JOBS, STEPS)
    for adapter, (rank, alpha, rate, _) in zip(together, JOBS, strict=True):
        torch.manual_seed(0)
        base = LlamaForCausalLM(engine.tiny_config())
        model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear"))
        state = {
            f"base_model.model.{name}.lora_{which}.default.weight": tensor
            for name, pair in adapter.start_values.items()
            for which, tensor in zip("AB", pair, strict=True)
        }
        assert model.load_state_dict(state, strict=False).unexpected_keys == []
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
        for step in range(STEPS):
            loss = mean_token_loss(model, adapter.micro_batch(step))
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            optimizer.zero_grad()
            assert abs(loss.item() - adapter.losses[step]) < 1e-5


def mean_token_loss(model, samples):
    sums = [model(input_ids=s[None], labels=s[None]).loss * (len(s) - 1) for s in samples]
    return sum(sums) / sum(len(s) - 1 for s in samples)
