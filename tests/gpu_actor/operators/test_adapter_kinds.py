"""Every kind of adapter against PEFT's own: forward, gradients and a full run, alone and in mixed company."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from gpu_actor.adapters import kinds
from gpu_actor.adapters.dropout import dropout_mask, dropped_share
from gpu_actor.adapters.kinds.pissa import Pissa
from gpu_actor.adapters.kinds.vera import Vera
from gpu_actor.adapters.layer_plan import LayerPlan
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.batch.shared_batch import pack
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.operators import UPDATES
from gpu_actor.operators.multi_adapter_linear import MultiAdapterLinear
from gpu_actor.operators.routing import Routing
from support.engine import losses_of, make_spec, make_tenant, micro_batch, run_all, tiny_hooked
from support.oracle import adapter_tensors, largest_difference, peft_model, peft_tensor, train_alone
from support.tiny import tiny_model, token_rows

CPU = torch.device("cpu")
ALL = {"exclude_modules": ["gate_proj"], "layers_to_transform": [1]}
KINDS = {
    "lora": {"r": 4, "lora_alpha": 7},
    "rslora": {"r": 4, "lora_alpha": 7, "use_rslora": True, "init_lora_weights": "gaussian"},
    "dora": {"r": 4, "lora_alpha": 7, "use_dora": True},
    "dora-rslora": {
        "r": 3,
        "lora_alpha": 5,
        "use_dora": True,
        "use_rslora": True,
        "target_modules": ["v_proj", "up_proj"],
    },
    "vera": {"peft_type": "VERA", "r": 24, "projection_prng_key": 5, "d_initial": 0.3},
    "vera-narrow": {"peft_type": "VERA", "r": 9, "target_modules": ["k_proj", "up_proj"], "layers_to_transform": 1},
    "orthogonal": {"r": 4, "lora_alpha": 7, "init_lora_weights": "orthogonal"},
    "patterns": {
        "r": 4,
        "rank_pattern": {"q_proj": 6, r"layers\.1\.mlp\..*": 2},
        "alpha_pattern": {"mlp.down_proj": 3.5},
        "exclude_modules": r".*\.0\.self_attn\.v_proj",
    },
    "layers": {
        "r": 4,
        "target_modules": ["q_proj", "gate_proj"],
        "layers_to_transform": [1],
        "layers_pattern": "layers",
    },
}
PISSA = {"r": 4, "lora_alpha": 6, "init_lora_weights": "pissa"}


def disturbed(base, lora, seed=1):
    """An adapter with no zeros left, so that every gradient counts."""
    weights = base.new_adapter(LoraConfig(**lora))
    weights.initialise(seed)
    weights.flat.data.add_(torch.randn(weights.flat.shape, generator=torch.Generator().manual_seed(seed)), alpha=0.05)
    return weights


@pytest.fixture(scope="module")
def base():
    return tiny_hooked(dtype=torch.float64)


@pytest.fixture(scope="module")
def neighbours(base):
    """One adapter of each operator, to stand around the one that is looked at."""
    return [disturbed(base, KINDS[kind], seed=7) for kind in ("lora", "dora", "vera")]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_equal_peft_in_mixed_company(base, neighbours, kind):
    mine = disturbed(base, KINDS[kind])
    around = [micro_batch(other, [9 + i], i) for i, other in enumerate(neighbours)]
    batch = pack([*around[:2], micro_batch(mine, [5, 17, 30]), around[2]], CPU)
    losses = losses_of(base, batch)
    torch.stack(losses).sum().backward()

    alone = peft_model(tiny_model(dtype=torch.float64), mine.lora, adapter_tensors(mine))
    loss = peft_loss(alone, micro_batch(mine, [5, 17, 30]).sequences)
    assert float(losses[2].detach()) == pytest.approx(float(loss.detach()), rel=1e-11)
    trained = {name for name, parameter in alone.named_parameters() if parameter.requires_grad}
    ours = adapter_tensors(mine, gradients=True)
    assert len(ours) == len(trained)
    for (name, which), gradient in ours.items():
        theirs = peft_tensor(alone, name, which).grad
        assert theirs.abs().max() > 0
        torch.testing.assert_close(gradient, theirs, rtol=1e-9, atol=1e-10)


def peft_loss(model, sequences):
    """Sum of the token losses, and their gradients."""
    total = 0.0
    for sequence in sequences:
        ids = torch.tensor(sequence.astype("int64"))[None]
        logits = model(input_ids=ids).logits[0, :-1]
        total = total + nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
    total.backward()
    return total


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["lora", "pissa", "dora", "vera"])
def test_one_layer_equals_peft_with_the_same_dropout_mask(kind, dropout, conv):
    """Output and every gradient, in fp64, on a Linear and on a Conv1D with a bias; PEFT is given our mask."""
    torch.manual_seed(0)
    rank = 4
    linear = (Conv1D(5, 8) if conv else nn.Linear(8, 5)).requires_grad_(False)
    linear.bias.data.normal_()
    lora = one_layer_config(kind, rank, dropout)
    reference = peft_layer(linear, lora, conv)
    layer, weights = our_layer(linear.double(), lora, reference)
    x = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(7, 5, dtype=torch.float64)
    ours = layer(x[None])[0]
    (ours * probe).sum().backward()
    grad_x, x.grad = x.grad, None

    if dropout:
        mask = dropout_mask(9, 0, dropout, torch.empty(7, 8)) / (1.0 - dropped_share(dropout))
        (getattr(reference, "vera_dropout", None) or reference.lora_dropout)["default"] = Times(mask)
    theirs = reference(x)
    (theirs * probe).sum().backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=2e-7 if kind == "pissa" else 1e-12)
    torch.testing.assert_close(grad_x, x.grad, rtol=1e-6, atol=2e-7 if kind == "pissa" else 1e-12)
    for mine, parameter in zip(weights.gradients[0], layer_parameters(reference), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-6, atol=1e-12)


def one_layer_config(kind, rank, dropout):
    if kind == "vera":
        return LoraConfig(peft_type="VERA", r=rank, vera_dropout=dropout, d_initial=0.7)
    start = {"init_lora_weights": "pissa"} if kind == "pissa" else {"use_dora": kind == "dora"}
    return LoraConfig(r=rank, lora_alpha=7, lora_dropout=dropout, **start)


class Times(nn.Module):
    """Stands in for dropout: multiplies with a fixed mask."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def forward(self, x):
        return x * self.mask


def peft_layer(linear, lora, conv):
    """PEFT's layer around a copy of `linear`, in fp64, all trained values disturbed."""
    import copy

    from peft import LoraModel, VeraModel

    from support.oracle import peft_config

    config = peft_config(lora)
    config.fan_in_fan_out, config.target_modules = conv, ["x"]
    holder = nn.Sequential()
    holder.add_module("x", copy.deepcopy(linear))
    model = (VeraModel if lora.peft_type == "VERA" else LoraModel)(holder, config, "default")
    if lora.peft_type == "VERA":
        for shared in (model.vera_A, model.vera_B):
            shared["default"] = shared["default"].double()
    layer = model.double().model.x.train()
    layer.at_start = [parameter.detach().clone() for parameter in layer_parameters(layer)]
    for parameter in layer_parameters(layer):
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    return layer


def layer_parameters(layer):
    """PEFT's trained tensors of one layer, in our order."""
    names = ("lora_A.default.weight", "lora_B.default.weight", "lora_magnitude_vector.default.weight")
    found = dict(layer.named_parameters())
    return [found[name] for name in (*names, "vera_lambda_b.default", "vera_lambda_d.default") if name in found]


def our_layer(linear, lora, reference):
    """Our layer with PEFT's present values; its start must be PEFT's start."""
    routing = Routing(CPU)
    layer = MultiAdapterLinear(linear, 0, routing)
    plan = LayerPlan("x", 8, 5, lora.r, lora.scalings_of(["x"])["x"])
    weights = AdapterWeights(lora, {0: (plan, linear)}, CPU, torch.float64)
    weights.initialise(1)
    for number, (mine, start, now) in enumerate(
        zip(weights.layers[0], reference.at_start, layer_parameters(reference), strict=True)
    ):
        if isinstance(weights.kind, (Pissa, Vera)) or number == 2:  # the others' start is drawn from their seeds
            torch.testing.assert_close(mine, start, rtol=1e-6, atol=1e-7)
        mine.copy_(now.detach())
    routing.segments = pack([micro_batch(weights, [7], dropout_seeds=(9,))], CPU).segments
    return layer, weights


@pytest.mark.parametrize("kind", ["pissa", "dora", "vera"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradcheck_with_a_fixed_dropout_mask(kind, dropout):
    """Numerical against analytical gradients, in fp64; DoRA's norm is a constant to the input only."""
    torch.manual_seed(0)
    linear = nn.Linear(6, 5).double().requires_grad_(False)
    lora = one_layer_config(kind, 2, dropout)
    routing = Routing(CPU)
    layer = MultiAdapterLinear(linear, 0, routing)
    plan = LayerPlan("x", 6, 5, 2, lora.scalings_of(["x"])["x"])
    weights = AdapterWeights(lora, {0: (plan, linear)}, CPU, torch.float64)
    weights.initialise(0)
    weights.flat.data.add_(torch.randn_like(weights.flat), alpha=0.3)
    routing.segments = pack([micro_batch(weights, [4], dropout_seeds=(9,)), micro_batch(None, [3])], CPU).segments
    x = torch.randn(1, 7, 6, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(layer, (x,), atol=1e-8)


TRAINING = {"learning_rate": 3e-3, "max_steps": 10, "per_device_train_batch_size": 2, "weight_decay": 0.05}
RUNS = {
    "dora": (KINDS["dora"], {}),
    "vera": (KINDS["vera"], {"learning_rate": 2e-2}),
    "pissa": (PISSA, {"gradient_accumulation_steps": 2}),
    "patterns": (KINDS["patterns"], {}),
    "orthogonal": (KINDS["orthogonal"], {"lr_scheduler_type": "cosine", "warmup_steps": 2}),
}


@pytest.mark.slow
def test_full_runs_in_one_shared_batch_equal_solo_trainer(tmp_path):
    """DoRA, VeRA, PiSSA (PEFT's own, which changes the base), patterns and an orthogonal start train together."""
    base = tiny_hooked()
    specs, rows = {}, {}
    for number, (name, (lora, training)) in enumerate(RUNS.items()):
        rows[name] = token_rows(9, seed=number)
        specs[name] = make_spec(tmp_path, name, rows[name], lora, {**TRAINING, **training})
    tenants = {name: make_tenant(base, spec) for name, spec in specs.items()}
    starts = {name: adapter_tensors(tenant.weights) for name, tenant in tenants.items()}
    run_all(base, list(tenants.values()), 300)
    for name, tenant in tenants.items():
        theirs, _ = train_alone(tiny_model(), specs[name], rows[name], starts[name])
        assert largest_difference(starts[name], theirs) > 1e-3, "the oracle did not train"
        assert largest_difference(adapter_tensors(tenant.weights), theirs) < 1e-4, name


@pytest.mark.parametrize("kind", ["lora", "pissa", "dora", "vera"])
def test_a_base_in_half_precision_gives_nearly_the_same_gradients(kind):
    """The adapter stays in fp32 there; only the base's rounding shows."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        half = tiny_hooked(dtype=dtype)
        weights = disturbed(half, PISSA if kind == "pissa" else KINDS[kind])
        assert weights.flat.dtype == torch.float32
        batch = pack([micro_batch(weights, [20, 9], dropout_seeds=(1, 2))], CPU)
        losses_of(half, batch)[0].backward()
        found.append(weights.gradient)
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.98


def test_every_kind_has_its_operator():
    assert set(UPDATES) == set(kinds.KINDS)
