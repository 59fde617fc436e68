"""The multi-adapter operator: forward and gradients against PEFT and against autograd, dropout included."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from gpu_actor.adapters.dropout import dropout_mask, dropped_share
from gpu_actor.adapters.layer_plan import LayerPlan
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.batch.shared_batch import pack
from gpu_actor.contract.errors import InvalidJobError
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.operators.multi_adapter_linear import MultiAdapterLinear
from gpu_actor.operators.routing import Routing
from support.engine import losses_of, micro_batch, tiny_hooked
from support.oracle import adapter_tensors, peft_model, peft_tensor
from support.tiny import tiny_model

CPU = torch.device("cpu")


def random_adapter(base, seed, **lora):
    weights = base.new_adapter(LoraConfig(**lora))
    weights.initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    for _, b in weights.layers.values():
        b.normal_(0, 0.1, generator=generator)
    return weights


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_gradients_equal_peft_in_company(rslora, targets):
    """Rank 4 with alpha 7, beside an adapter of another rank and other targets."""
    base = tiny_hooked(dtype=torch.float64)
    mine = random_adapter(base, 1, r=4, lora_alpha=7, target_modules=targets, use_rslora=rslora)
    other = random_adapter(base, 2, r=9, lora_alpha=90, target_modules=["v_proj", "q_proj"])
    batch = pack([micro_batch(other, [11], 5), micro_batch(mine, [5, 17, 30]), micro_batch(other, [40], 6)], CPU)
    losses = losses_of(base, batch)
    torch.stack(losses).sum().backward()

    alone = peft_model(tiny_model(dtype=torch.float64), mine.lora, adapter_tensors(mine))
    total = torch.zeros((), dtype=torch.float64)
    for sequence in micro_batch(mine, [5, 17, 30]).sequences:
        ids = torch.tensor(sequence.astype("int64"))[None]
        total = total + nn.functional.cross_entropy(alone(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum")
    total.backward()
    assert float(losses[1].detach()) == pytest.approx(float(total.detach()), rel=1e-12)
    for index, pair in mine.gradients.items():
        for which, gradient in zip("AB", pair, strict=True):
            theirs = peft_tensor(alone, mine.names[index], which).grad
            torch.testing.assert_close(gradient, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5])
def test_gradcheck_with_a_fixed_dropout_mask(dropout, conv):
    """Numerical against analytical gradients of the input and of A and B, in fp64."""
    torch.manual_seed(0)
    linear = (Conv1D(5, 6) if conv else nn.Linear(6, 5)).double().requires_grad_(False)
    routing = Routing(CPU)
    layer = MultiAdapterLinear(linear, 0, routing)
    weights = AdapterWeights(
        LoraConfig(r=2, lora_alpha=3, lora_dropout=dropout),
        {0: (LayerPlan("x", 6, 5, 2, 1.5), linear)},
        CPU,
        torch.float64,
    )
    weights.flat.data.normal_()
    routing.segments = pack([micro_batch(weights, [4], dropout_seeds=(9,)), micro_batch(None, [3])], CPU).segments
    x = torch.randn(1, 7, 6, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(layer, (x,), atol=1e-8)

    probe = torch.randn(1, 7, 5, dtype=torch.float64)
    weights.zero_grad()
    (layer(x) * probe).sum().backward()
    analytical = weights.gradient.clone()
    for place in range(len(weights.flat)):
        with torch.no_grad():
            sides = []
            for shift in (1e-6, -1e-6):
                weights.flat.data[place] += shift
                sides.append(float((layer(x) * probe).sum()))
                weights.flat.data[place] -= shift
        assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(float(analytical[place]), abs=1e-6)


def test_dropout_keeps_the_expected_share_and_rescales():
    like = torch.ones(400, 500)
    mask = dropout_mask(seed=3, index=1, probability=0.3, like=like)
    assert mask.double().mean() == pytest.approx(0.7, abs=0.005)
    assert dropped_share(0.3) == pytest.approx(0.3, abs=1e-5)
    assert not torch.equal(mask, dropout_mask(3, 2, 0.3, like)), "layers must differ"
    assert not torch.equal(mask, dropout_mask(4, 1, 0.3, like)), "seeds must differ"
    linear = nn.Linear(500, 2).requires_grad_(False)
    routing = Routing(CPU)
    layer = MultiAdapterLinear(linear, 0, routing)
    weights = AdapterWeights(
        LoraConfig(r=1, lora_alpha=1, lora_dropout=0.3), {0: (LayerPlan("x", 500, 2, 1, 1.0), linear)}, CPU
    )
    weights.flat.data.fill_(0.1)
    routing.segments = pack([micro_batch(weights, [400], dropout_seeds=(3,))], CPU).segments
    dropped = (layer(like[None]) - linear(like)).mean()
    assert float(dropped.detach()) == pytest.approx(500 * 0.1 * 0.1, rel=0.01), "dropout must keep the expectation"


def test_dropout_never_touches_the_base_branch():
    base = tiny_hooked()
    weights = base.new_adapter(LoraConfig(r=4, lora_dropout=0.5))
    weights.initialise(1)  # B is zero: the adapter changes nothing, whatever is dropped
    dropped = base.logits(pack([micro_batch(weights, [20], dropout_seeds=(5,))], CPU))
    bare = base.logits(pack([micro_batch(None, [20])], CPU))
    assert torch.equal(dropped, bare)


def test_initial_weights_depend_on_the_seed_alone():
    base = tiny_hooked()
    first = base.new_adapter(LoraConfig(r=4))
    first.initialise(42)
    base.new_adapter(LoraConfig(r=64)).initialise(1)
    again = base.new_adapter(LoraConfig(r=4))
    again.initialise(42)
    other = base.new_adapter(LoraConfig(r=4))
    other.initialise(43)
    assert torch.equal(first.flat, again.flat)
    assert not torch.equal(first.flat, other.flat)
    bound = 1 / 64**0.5  # Kaiming-uniform with a = sqrt(5) over 64 inputs
    a, b = first.layers[0]
    assert 0.9 * bound < float(a.abs().max()) <= bound
    assert not b.any()


def test_a_layer_without_the_adapter_and_rows_without_an_adapter_are_the_bare_base():
    base = tiny_hooked()
    weights = random_adapter(base, 1, r=4, target_modules=["q_proj"])
    together = base.logits(pack([micro_batch(weights, [12], 1), micro_batch(None, [15], 2)], CPU))
    bare = copy.deepcopy(tiny_model())
    ids = torch.tensor(micro_batch(None, [15], 2).sequences[0].astype("int64"))[None]
    torch.testing.assert_close(together[12:], bare(ids).logits[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(
        together[:12],
        bare(torch.tensor(micro_batch(None, [12], 1).sequences[0].astype("int64"))[None]).logits[0],
        atol=1e-2,
    )


def test_targets_that_match_nothing_are_refused_with_the_names_that_exist():
    base = tiny_hooked()
    for targets in (["q_proj", "query"], r"layers\.9\..*"):
        with pytest.raises(InvalidJobError, match=r"query|layers") as caught:
            base.new_adapter(LoraConfig(target_modules=targets))
        assert "down_proj" in str(caught.value)
        assert "'q_proj'" not in str(caught.value)


def test_no_gradient_reaches_the_base_or_a_neighbour():
    base = tiny_hooked()
    mine, other = random_adapter(base, 1, r=4), random_adapter(base, 2, r=4)
    batch = pack([micro_batch(mine, [9]), micro_batch(other, [14])], CPU)
    losses_of(base, batch)[0].backward()
    assert mine.gradient.abs().max() > 0
    assert not other.gradient.any()
    assert all(parameter.grad is None for parameter in base.model.parameters())
