"""Start values are PEFT's own for the same stream of random numbers."""

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import LoraModel, VeraConfig, VeraModel
from torch import nn

from gpu_actor.adapters import start_values
from gpu_actor.adapters.kinds.pissa import principal_pair
from gpu_actor.adapters.kinds.vera import Vera
from gpu_actor.adapters.layer_plan import LayerPlan
from gpu_actor.contract.lora_config import LoraConfig
from support.engine import tiny_hooked

PLAN = LayerPlan("x", 24, 16, 4, 2.5)


def peft_layer(start):
    torch.manual_seed(0)
    holder = nn.Sequential()
    holder.add_module("x", nn.Linear(24, 16, bias=False))
    weight = holder.x.weight.detach().clone()
    config = PeftLoraConfig(r=4, lora_alpha=10, target_modules=["x"], init_lora_weights=True)
    layer = LoraModel(holder, config, "default").model.x
    torch.manual_seed(11)
    if start == "orthogonal":
        layer.orthogonal_init("default")
    elif str(start).startswith("pissa"):
        layer.pissa_init("default", start)
    else:
        layer.reset_lora_parameters("default", start)
    return weight, layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()


@pytest.mark.parametrize("start", [True, "gaussian", "orthogonal", "pissa", "pissa_niter_3"])
def test_the_start_is_that_of_peft(start):
    weight, a, b = peft_layer(start)
    generator = torch.Generator().manual_seed(11)
    made = {
        True: lambda: start_values.kaiming(4, 24, 16, generator),
        "gaussian": lambda: start_values.gaussian(4, 24, 16, generator),
        "orthogonal": lambda: start_values.orthogonal(4, 24, 16, generator),
        "pissa": lambda: principal_pair(weight, PLAN, None, 11),
        "pissa_niter_3": lambda: principal_pair(weight, PLAN, 3, 11),
    }[start]()
    torch.testing.assert_close(made[0], a, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(made[1], b, rtol=1e-6, atol=1e-7)


def test_the_matrices_of_vera_are_those_of_peft():
    holder = nn.Sequential()
    holder.add_module("x", nn.Linear(24, 16))
    holder.add_module("y", nn.Linear(10, 40))
    model = VeraModel(holder, VeraConfig(r=12, target_modules=["x", "y"], projection_prng_key=77), "default")
    kind = Vera(LoraConfig(peft_type="VERA", r=12, projection_prng_key=77))
    made = kind.make_shared([LayerPlan("x", 24, 16, 12, 1.0), LayerPlan("y", 10, 40, 12, 1.0)])
    assert torch.equal(made["vera_A"], model.vera_A["default"])
    assert torch.equal(made["vera_B"], model.vera_B["default"])


@pytest.mark.parametrize("start", ["gaussian", "orthogonal", "pissa", "pissa_niter_2"])
def test_the_job_and_the_base_alone_decide_the_start(start):
    """Neither other adapters nor the global stream of random numbers; and that stream goes on as it was."""
    base, lora = tiny_hooked(), LoraConfig(r=4, init_lora_weights=start)
    first, again = base.new_adapter(lora), base.new_adapter(lora)
    first.initialise(42)
    base.new_adapter(LoraConfig(r=8, init_lora_weights="pissa_niter_1")).initialise(1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again.initialise(42)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.flat, again.flat)
    assert first.flat.abs().max() > 0
