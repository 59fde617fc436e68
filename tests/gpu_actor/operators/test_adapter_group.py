"""Many LoRA adapters in one product: equal to the loop over segments, and no value leaves its own rows.

The products run on the CPU here, chosen explicitly: what a GPU takes is the same code with other kernels below it.
"""

import pytest
import torch
from torch import nn

from gpu_actor.adapters.dropout import RowDropout, dropout_words, dropped_share
from gpu_actor.adapters.layer_plan import LayerPlan
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.batch.shared_batch import pack
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.operators.multi_adapter_linear import MultiAdapterLinear
from gpu_actor.operators.products import Ends, GroupedProducts, LoopedProducts
from gpu_actor.operators.routing import Routing
from gpu_actor.operators.working_copies import WorkingCopies
from support.engine import make_spec, make_tenant, micro_batch, run_all, served_as_on_a_gpu
from support.tiny import family_model, tiny_model, token_rows

CPU = torch.device("cpu")
BACKENDS = {"loop": None, "looped": LoopedProducts(), "grouped": GroupedProducts()}
ATTENTION = ["q_proj", "v_proj"]
# Alpha a power of two times the rank: then a factor changes no digit, wherever it stands in a product.
MIXED = [
    {"r": 8, "lora_alpha": 16},
    {"r": 12, "lora_alpha": 12},
    {"r": 8, "lora_alpha": 32, "alpha_pattern": {"up_proj": 8}},
    {"r": 64, "lora_alpha": 32, "target_modules": ATTENTION},
    {"r": 4, "lora_alpha": 8, "target_modules": ["down_proj"]},
    {"r": 4, "lora_alpha": 4, "use_dora": True},
    {"r": 4, "lora_alpha": 4, "rank_pattern": {"k_proj": 16}},
    {"r": 16, "lora_alpha": 16, "layers_to_transform": [1]},
]
SMALL = [{"r": r, "lora_alpha": 2 * r} for r in (1, 2, 3, 4, 8)]


def hooked(backend, dtype=torch.float32, model=None, **settings):
    """A base that computes as on a GPU, with products of our choice."""
    return served_as_on_a_gpu(model or tiny_model(dtype=dtype), BACKENDS[backend], **settings)


def disturbed(base, lora, seed):
    """An adapter without zeros, so that every gradient counts."""
    weights = base.new_adapter(LoraConfig(**lora))
    weights.initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    for tensors in weights.layers.values():
        for tensor in tensors:
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.05)
    return weights


def step(base, loras, spoil=None, dropout=False):
    """Losses and gradients of one shared batch: the first adapter has two micro-batches, then come bare rows."""
    adapters = [disturbed(base, lora, seed) for seed, lora in enumerate(loras)]
    seeds = [(seed, seed + 100) if dropout else None for seed in range(len(adapters))]
    batches = [micro_batch(w, [9 + i, 14], i, dropout_seeds=seeds[i]) for i, w in enumerate(adapters)]
    batches[1:1] = [micro_batch(adapters[0], [11], 50), micro_batch(None, [6], 51)]
    losses = base.losses(pack(batches, CPU))
    scales = torch.ones(len(losses))
    if spoil is not None:
        scales[spoil] = float("nan")
    (torch.stack([found.loss for found in losses]) * scales).sum().backward()
    return torch.stack([found.loss.detach() for found in losses]), [weights.gradient for weights in adapters]


@pytest.mark.parametrize("backend", ["looped", "grouped"])
@pytest.mark.parametrize("loras", [MIXED, [MIXED[0]] * 4], ids=["mixed", "alike"])
def test_fp32_is_the_loop_to_the_bit(backend, loras):
    """Ranks, targets, layers, kinds and factors mixed."""
    losses, gradients = step(hooked("loop"), loras)
    found, ours = step(hooked(backend), loras)
    assert torch.equal(found, losses)
    # the two micro-batches of the first adapter are one product here, and two sums there
    torch.testing.assert_close(ours[0], gradients[0], rtol=1e-5, atol=1e-4)
    assert all(torch.equal(one, other) for one, other in zip(ours[1:], gradients[1:], strict=True))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_ranks_that_are_padded_differ_from_the_loop_by_rounding_alone():
    """A product with one to three columns takes other kernels than one with eight."""
    looped, grouped, loop = (step(hooked(backend), SMALL)[1] for backend in ("looped", "grouped", "loop"))
    assert all(torch.equal(one, other) for one, other in zip(looped, grouped, strict=True))
    for one, other in zip(grouped, loop, strict=True):
        assert float((one - other).norm() / other.norm()) < 2e-6


def test_bf16_is_as_near_to_fp32_as_the_loop_is():
    """The loop computes updates in fp32 there; groups compute them in bf16, as PEFT does under autocast."""
    loras = [*MIXED[:5], *MIXED[6:], *SMALL]
    exact = step(hooked("loop", model=tiny_model().bfloat16().float()), loras)[1]
    found = {backend: step(hooked(backend, torch.bfloat16), loras)[1] for backend in BACKENDS}
    assert all(torch.equal(one, other) for one, other in zip(found["looped"], found["grouped"], strict=True))
    errors = {
        backend: max(float((one - other).norm() / other.norm()) for one, other in zip(ours, exact, strict=True))
        for backend, ours in found.items()
    }
    assert errors["grouped"] < 1.2 * errors["loop"] < 0.03


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", ["values", "gradient"])
def test_a_neighbour_without_numbers_changes_no_bit_of_the_others(backend, where):
    """NaN in the activations of one adapter's rows, or in their gradient alone."""
    loras = [MIXED[0]] * 3 + MIXED
    clean = step(hooked(backend), loras, dropout=True)
    base = hooked(backend)
    if where == "values":
        initialise = AdapterWeights.initialise

        def spoiled(weights, seed):
            initialise(weights, seed)
            if seed == 1:
                weights.flat.data.fill_(float("nan"))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AdapterWeights, "initialise", spoiled)
            losses, gradients = step(base, loras, dropout=True)
    else:
        losses, gradients = step(base, loras, spoil=3, dropout=True)
    assert not torch.isfinite(gradients[1]).all()
    for number, (one, other) in enumerate(zip(gradients, clean[1], strict=True)):
        assert number == 1 or torch.equal(one, other), number
    assert torch.equal(losses[[0, 1, 2, *range(4, len(losses))]], clean[0][[0, 1, 2, *range(4, len(losses))]])


def test_what_pads_a_rank_stays_zero_over_twenty_steps(tmp_path, monkeypatch):
    """Rank 3 among 8 columns: neither values nor gradients ever stand in the other five."""
    base = hooked("grouped")
    largest = []
    hand_on = WorkingCopies.hand_on_gradients

    def looked_at(copies):
        for views in (copies.layers, copies._gradients):
            for a, b in views.values():
                largest.append([float(part.abs().max()) for part in (a[:, 3:], b[:, :, 3:], a[:, :3])])
        hand_on(copies)

    monkeypatch.setattr(WorkingCopies, "hand_on_gradients", looked_at)
    training = {"max_steps": 20, "weight_decay": 0.5, "learning_rate": 1e-2, "per_device_train_batch_size": 1}
    lora = {"r": 3, "target_modules": ATTENTION}
    specs = [make_spec(tmp_path, f"job-{i}", token_rows(9, i), lora, training) for i in range(2)]
    run_all(base, [make_tenant(base, spec) for spec in specs], 1000)
    assert len(largest) == 20 * 2 * 4
    assert all(a == b == 0 for a, b, _ in largest)
    assert max(used for *_, used in largest) > 0


def one_layer(dropout, backend="looped"):
    """A layer in fp64 with two adapters, one of them with dropout, and bare rows between."""
    torch.manual_seed(0)
    linear = nn.Linear(6, 5).double().requires_grad_(False)
    routing = Routing(CPU, torch.float64, "cuda")
    routing.products = BACKENDS[backend]
    layer = MultiAdapterLinear(linear, 0, routing)
    adapters = []
    for share in (dropout, 0.0):
        lora, plan = LoraConfig(r=2, lora_alpha=3, lora_dropout=share), LayerPlan("x", 6, 5, 2, 1.5)
        adapters.append(AdapterWeights(lora, {0: (plan, linear)}, CPU, torch.float64))
        adapters[-1].flat.data.normal_()
    batches = [micro_batch(w, [4, 3], dropout_seeds=(9, 8)) for w in adapters]
    batch = pack([batches[0], micro_batch(None, [3]), batches[1]], CPU)
    routing.begin(batch.segments, batch.lengths, False)
    return layer, adapters, lambda: routing.begin(batch.segments, batch.lengths, False)


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5])
def test_gradcheck_and_no_mask_is_kept(dropout):
    """Numerical against analytical gradients of the input, of A and of B, in fp64; what is kept has no mask in it."""
    layer, adapters, begin = one_layer(dropout)
    x = torch.randn(1, 17, 6, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(layer, (x,), atol=1e-8)

    begin()
    probe = torch.randn(1, 17, 5, dtype=torch.float64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        (layer(x) * probe).sum().backward()
    wide = [t for t in kept if t.shape[-1] == 6]
    assert len(wide) == 1, "the inputs, once"
    assert wide[0].data_ptr() == x.data_ptr()
    assert all(t.is_floating_point() for t in kept)
    for weights in adapters:
        for place in range(0, len(weights.flat), 3):
            sides = []
            for shift in (1e-6, -2e-6):
                weights.flat.data[place] += shift
                begin()
                sides.append(float((layer(x) * probe).sum().detach()))
            weights.flat.data[place] += 1e-6
            assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(float(weights.gradient[place]), abs=1e-6)


def test_dropout_without_a_mask_keeps_the_share_and_hangs_on_seed_layer_row_and_column():
    rows, width = 1000, 600
    ones = torch.ones(rows, width)

    def kept(seed, index, probability=0.3):
        return RowDropout(torch.from_numpy(dropout_words(seed, rows, probability)))(index, ones)[0]

    mask = kept(1, 0)
    spread = (0.21 / mask.numel()) ** 0.5
    assert abs(float(mask.double().mean()) - (1 - dropped_share(0.3))) < 4 * spread
    for means in (mask.double().mean(0), mask.double().mean(1)):  # of columns, of rows: as even as chance is
        size = mask.numel() / len(means)
        assert float(means.std()) == pytest.approx((0.21 / size) ** 0.5, rel=0.1)
    others = [kept(2, 0), kept(1, 1), kept(1, 223), mask.roll(1, 0), mask.roll(1, 1), mask.flip(0), mask.roll(16, 1)]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([mask.ravel(), other.ravel()]))[0, 1])) < 4 / mask.numel() ** 0.5
    assert torch.equal(kept(1, 0, 0.0), ones)
    assert torch.equal(kept(1, 0), mask)


@pytest.mark.parametrize("backend", ["looped", "grouped"])
def test_dropout_hangs_on_no_company(backend):
    """The same job's gradient with dropout, alone and among others; its masks are those of its own sequences."""
    alone = step(hooked(backend), [{**MIXED[0], "lora_dropout": 0.3}], dropout=True)
    company = step(hooked(backend), [{**MIXED[0], "lora_dropout": 0.3}, *MIXED[1:4]], dropout=True)
    none = step(hooked(backend), [MIXED[0]], dropout=True)
    torch.testing.assert_close(company[1][0], alone[1][0], rtol=1e-4, atol=1e-4)
    assert float((none[1][0] - alone[1][0]).norm() / none[1][0].norm()) > 0.05


@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_checkpointing_and_rows_of_their_own_give_the_same_gradients(family):
    """Layers that run again in the backward find their adapters; a base that cannot be packed has groups of one."""
    loras = [{**MIXED[0], "lora_dropout": 0.2, "target_modules": "all-linear"}] * 3
    plain = step(hooked("looped", model=family_model(family, dtype=torch.float64)), loras, dropout=True)[1]
    again = hooked("looped", model=family_model(family, dtype=torch.float64), gradient_checkpointing=True)
    for one, other in zip(step(again, loras, dropout=True)[1], plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_sizes_that_the_grouped_kernel_does_not_take_are_looped_over():
    """It wants rows of a multiple of 16 bytes."""
    ends = Ends((2, 5, 9), torch.tensor([2, 5, 9], dtype=torch.int32))
    for columns in (6, 8):
        rows, matrices = torch.randn(9, columns), torch.randn(3, columns, 8)
        for products in (LoopedProducts(), GroupedProducts()):
            out = products.of_rows(rows, matrices, ends)
            for matrix, (start, end) in zip(matrices, ((0, 2), (2, 5), (5, 9)), strict=True):
                assert torch.equal(out[start:end], rows[start:end] @ matrix)
            groups = products.of_groups(rows, out, ends)
            assert torch.equal(groups[1], rows[2:5].t() @ out[2:5])
