"""Adapters on half-precision bases: what a step does is that of the same weights in fp32, as far as the format goes."""

import pytest
import torch

from gpu_actor.batch.shared_batch import pack
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.model.base_model import BaseModel
from support.engine import losses_of, make_spec, make_tenant, micro_batch, run_all
from support.oracle import metric_rows
from support.tiny import tiny_model, token_rows

VOCABULARY = 30_000


def base_in(dtype):
    """The same weights in another number format: those of bf16 and fp16 are exact in fp32 as well."""
    model = tiny_model(vocab_size=VOCABULARY).half().bfloat16().to(dtype)
    return BaseModel.serve("tiny", model)


def gradient(base):
    """Of 400 of the 4,000 tokens of a step, in the adapter's fp32, as `take_step` sees it."""
    weights = base.new_adapter(LoraConfig(r=4, target_modules="all-linear"))
    weights.initialise(1)
    noise = torch.randn(weights.flat.shape, generator=torch.Generator().manual_seed(1))
    weights.flat.data.add_(noise, alpha=0.02)
    batch = pack([micro_batch(weights, [200, 200], loss_scale=1 / 4000)], torch.device("cpu"))
    torch.stack(losses_of(base, batch)).sum().backward()
    return weights.gradient / weights.gradient_scale


def error(dtype):
    exact = gradient(base_in(torch.float32))
    return float((gradient(base_in(dtype)) - exact).norm() / exact.norm())


@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 0.01), (torch.bfloat16, 0.05)])
@pytest.mark.slow
def test_gradients_are_those_of_fp32(dtype, most):
    assert error(dtype) < most


@pytest.mark.slow
def test_without_the_scale_float16_loses_gradient(monkeypatch):
    kept = error(torch.float16)
    monkeypatch.setattr("gpu_actor.adapters.weights.HALF_SCALE", 1.0)
    assert error(torch.float16) > 3 * kept


@pytest.mark.slow
def test_a_step_sees_the_true_gradient_norm(tmp_path):
    """With the scale left in it, clipping would cut every step to a thousandth."""
    norms = {}
    for dtype in (torch.float32, torch.float16):
        base = base_in(dtype)
        tenant = make_tenant(base, make_spec(tmp_path, str(dtype), token_rows(8), {"r": 4}, {"max_steps": 3}))
        run_all(base, [tenant])
        norms[dtype] = [row["grad_norm"] for row in metric_rows(tenant.output_dir)]
    assert len(norms[torch.float32]) == 3
    assert norms[torch.float16] == pytest.approx(norms[torch.float32], rel=0.03)
