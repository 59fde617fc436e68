"""Preference losses against TRL and against the papers' formulas: values, gradients, and whole runs."""

import pytest
import torch

from gpu_actor.batch.pairs import PreferenceLoss
from gpu_actor.batch.shared_batch import pack
from gpu_actor.contract.config import TrainingConfig
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.data.samples import Collector
from gpu_actor.losses.objectives import StepSums
from gpu_actor.losses.preference import PairSums, pair_losses
from gpu_actor.training.micro_batches import MicroBatches
from gpu_actor.training.references import run_ahead
from support.engine import make_tenant, run_all, tiny_hooked
from support.oracle import adapter_tensors, largest_difference, metric_rows, peft_model, peft_tensor
from support.pairs import formula_loop, pair_rows, pair_spec, step_loss, sums_of, trl_dpo, trl_one_batch, trl_simpo
from support.sample_tokenizers import byte_level_tokenizer
from support.tiny import tiny_model

CPU = torch.device("cpu")
OBJECTIVES = {
    "dpo": {"objective": "dpo", "beta": 0.3},
    "dpo-smooth": {"objective": "dpo", "beta": 0.3, "label_smoothing": 0.2},
    "dpo-ipo": {"objective": "dpo", "beta": 0.2, "loss_type": "ipo"},
    "dpo-hinge": {"objective": "dpo", "beta": 0.5, "loss_type": "hinge"},
    "cpo": {"objective": "cpo", "beta": 0.2, "cpo_alpha": 0.7, "label_smoothing": 0.1},
    "cpo-ipo": {"objective": "cpo", "loss_type": "ipo"},
    "cpo-hinge": {"objective": "cpo", "loss_type": "hinge"},
    "orpo": {"objective": "orpo", "beta": 0.4},
    "simpo": {"objective": "simpo", "beta": 2.0, "gamma": 0.7},
    "simpo-smooth": {"objective": "simpo", "beta": 0.8, "label_smoothing": 0.2},
}
RUN = {"learning_rate": 2e-3, "num_train_epochs": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
ROWS = pair_rows(8, seed=3)


class Pairs:
    """A loaded data set of pairs."""

    def __init__(self, rows):
        collector = Collector(1000)
        for row in rows:
            sides = [(row[f"{s}_input_ids"], row[f"{s}_labels"]) for s in ("chosen", "rejected")]
            collector.add(*[tuple(torch.tensor(v, dtype=torch.int32).numpy() for v in side) for side in sides])
        self.train = self.val = collector.collected()


def shaken(base, seed=1, r=4):
    """An adapter that changes something."""
    weights = base.new_adapter(LoraConfig(r=r, lora_alpha=8))
    weights.flat.data.copy_(0.1 * torch.randn(len(weights.flat), generator=torch.Generator().manual_seed(seed)))
    return weights


def whole_batch(base, weights, rows, training, sizes=(100,)):
    """Loss, figures and gradient of one optimizer step over `rows`, run in micro-batches of the given sizes."""
    weights.zero_grad()
    made = MicroBatches(TrainingConfig(**training), weights, Pairs(rows), None).of_evaluation(1)
    sums = StepSums()
    for micro_batch in (part for whole in made for part in whole.parts(sizes[0])):
        run_ahead([micro_batch], base)
        batch = pack([micro_batch], CPU)
        (found,) = base.losses(batch)
        found.loss.backward()
        sums.add(found)
    return *sums.read(), weights.gradient.clone()


def peft_gradient(wrapped, weights):
    """PEFT's gradients in the layout of our buffer."""
    found = torch.zeros_like(weights.gradient)
    start = weights.flat.data_ptr()
    for index, pair in weights.layers.items():
        for which, tensor in zip("AB", pair, strict=True):
            first = (tensor.data_ptr() - start) // tensor.element_size()
            found[first : first + tensor.numel()] = peft_tensor(wrapped, weights.names[index], which).grad.flatten()
    return found


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.slow
def test_loss_and_gradient_equal_the_papers_formula_in_fp64(name):
    training = TrainingConfig(per_device_train_batch_size=100, **OBJECTIVES[name])
    base = tiny_hooked(dtype=torch.float64)
    weights = shaken(base)
    loss, _, gradient = whole_batch(base, weights, ROWS, training.model_dump(), (1,))
    stock = tiny_model(dtype=torch.float64)
    wrapped = peft_model(tiny_model(dtype=torch.float64), weights.lora, adapter_tensors(weights))

    def reference(row):
        with torch.no_grad():
            return [sums_of(stock, row[f"{s}_input_ids"], row[f"{s}_labels"])[0] for s in ("chosen", "rejected")]

    expected = step_loss(wrapped, reference, ROWS, training)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-12)
    theirs = peft_gradient(wrapped, weights)
    assert float((gradient - theirs).norm() / theirs.norm()) < 1e-11


@pytest.mark.parametrize("name", ["cpo", "cpo-ipo", "cpo-hinge", "orpo", "simpo", "simpo-smooth"])
def test_loss_and_figures_equal_trl(name):
    """ORPO's odds are computed in fp32 by TRL, whatever the model is; CPO agrees to fp64."""
    training = TrainingConfig(per_device_train_batch_size=100, **OBJECTIVES[name])
    base = tiny_hooked(dtype=torch.float64)
    weights = shaken(base)
    loss, figures, gradient = whole_batch(base, weights, ROWS, training.model_dump(), (1,))
    wrapped = peft_model(tiny_model(dtype=torch.float64), weights.lora, adapter_tensors(weights))
    expected, metrics = trl_one_batch(wrapped, ROWS, training)
    expected.backward()
    tolerance = 1e-6 if name == "orpo" else 1e-12
    assert loss == pytest.approx(float(expected.detach()), rel=tolerance)
    without = ("logits/", "nll_loss") if training.objective == "simpo" else ("logits/",)  # TRL logs 0 for no such term
    assert figures.keys() == {key for key in metrics if not key.startswith(without)}
    for key, value in figures.items():
        assert value == pytest.approx(metrics[key], rel=tolerance), key
    theirs = peft_gradient(wrapped, weights)
    assert float((gradient - theirs).norm() / theirs.norm()) < 10 * tolerance


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.slow
def test_any_split_of_a_step_gives_the_same_update(name):
    training = {"per_device_train_batch_size": 100, **OBJECTIVES[name]}
    base = tiny_hooked(dtype=torch.float64)
    weights = shaken(base)
    loss, figures, gradient = whole_batch(base, weights, ROWS, training, (1,))
    for count in (3, 8):
        split_loss, split_figures, split_gradient = whole_batch(base, weights, ROWS, training, (count,))
        assert split_loss == pytest.approx(loss, rel=1e-12)
        assert split_figures == pytest.approx(figures, rel=1e-12)
        torch.testing.assert_close(split_gradient, gradient, rtol=1e-9, atol=1e-12)


def test_certainty_has_a_finite_loss():
    """A model that gives a text the probability 1: ORPO's odds would be infinite, their gradient NaN."""
    certain = torch.zeros(2, requires_grad=True)
    one, zero = torch.ones(2), torch.zeros(2)
    sums = PairSums(certain, certain - 3, one, one, zero, zero, zero)
    found = pair_losses(PreferenceLoss("orpo", 0.1), sums)
    found.losses.sum().backward()
    assert torch.isfinite(found.losses).all()
    assert torch.isfinite(certain.grad).all()


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.slow
def test_a_full_run_equals_peft_and_the_formula_in_fp64(tmp_path, name):
    base = tiny_hooked(dtype=torch.float64)
    rows = pair_rows(6, seed=5)
    spec = pair_spec(tmp_path, name, rows, {"r": 4}, {**RUN, **OBJECTIVES[name]})
    tenant = make_tenant(base, spec)
    start = adapter_tensors(tenant.weights)
    run_all(base, [tenant])
    theirs, losses = formula_loop(tiny_model(dtype=torch.float64), spec, rows, start)
    assert largest_difference(start, theirs) > 1e-3, "the oracle did not train"
    assert largest_difference(adapter_tensors(tenant.weights), theirs) < 1e-10
    assert [row["loss"] for row in metric_rows(spec.output_dir)] == pytest.approx(losses, rel=1e-9)


@pytest.mark.parametrize("name", ["dpo", "dpo-ipo", "dpo-hinge", "simpo", "simpo-smooth"])
@pytest.mark.slow
def test_a_full_run_equals_trls_trainer(tmp_path, name):
    base = tiny_hooked()
    rows = pair_rows(8, seed=6)
    spec = pair_spec(tmp_path, name, rows, {"r": 4}, {**RUN, **OBJECTIVES[name]})
    tenant = make_tenant(base, spec)
    start = adapter_tensors(tenant.weights)
    run_all(base, [tenant])
    tokenizer = byte_level_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    oracle = trl_dpo if spec.training.objective == "dpo" else trl_simpo
    theirs, log = oracle(tiny_model(), spec, rows, start, tokenizer)
    assert largest_difference(start, theirs) > 1e-3, "the oracle did not train"
    assert largest_difference(adapter_tensors(tenant.weights), theirs) < 1e-4
    ours = metric_rows(spec.output_dir)
    assert len(ours) == len(log) == 6
    for mine, wanted in zip(ours, log, strict=True):
        for key in ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"):
            assert mine[key] == pytest.approx(wanted[key], abs=1e-3), key
    for mine, wanted in list(zip(ours, log, strict=True))[1:]:  # before the first update all rewards are 0
        assert mine["rewards/accuracies"] == pytest.approx(wanted["rewards/accuracies"])
