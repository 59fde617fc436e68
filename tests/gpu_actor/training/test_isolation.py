"""An adapter's bytes are a function of its own job: nothing a neighbour does shows in them."""

import dataclasses

import numpy as np
import pytest
import torch

from gpu_actor.adapters.dropout import dropout_mask
from gpu_actor.batch.composer import TokenBudget
from gpu_actor.contract.report import TenantState
from gpu_actor.device.failures import is_device_lost, is_out_of_memory
from gpu_actor.model.base_model import BaseModel
from gpu_actor.operators import update
from gpu_actor.training.trainer import CoTrainer
from support.engine import flat, make_spec, make_tenant, run_all, tiny_hooked
from support.oracle import metric_rows, same_bytes
from support.tiny import family_model, token_rows

MINE = {
    "lora": {"r": 4, "lora_alpha": 9, "lora_dropout": 0.1},
    "training": {
        "learning_rate": 2e-3,
        "max_steps": 8,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "weight_decay": 0.01,
    },
}
NEIGHBOUR = {
    "lora": {"r": 16, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "up_proj"]},
    "training": {"learning_rate": 1e-2, "max_steps": 11, "per_device_train_batch_size": 2, "weight_decay": 0.1},
}


def mine_spec(folder, **changes):
    settings = {**MINE, **changes}
    return make_spec(folder, "mine", token_rows(17, seed=5), settings["lora"], settings["training"])


def neighbour_spec(folder, name="neighbour", rows=None, **training):
    return make_spec(
        folder, name, rows or token_rows(19, seed=6), NEIGHBOUR["lora"], {**NEIGHBOUR["training"], **training}
    )


def alone(base, folder, **changes):
    tenant = make_tenant(base, mine_spec(folder, **changes))
    run_all(base, [tenant])
    return flat(tenant)


@pytest.mark.parametrize(("kind", "threads"), [("llama", 1), ("llama", 2), ("mistral", 1), ("qwen2", 2), ("qwen3", 1)])
@pytest.mark.slow
def test_bytes_are_the_same_alone_and_in_company(tmp_path, kind, threads):
    """Dropout is on; batch sizes, token budgets and neighbours differ; the intermediate size is an odd 100."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        base = tiny_hooked(kind)
        expected = alone(base, tmp_path / "alone")
        for budget in (64, 300, 2000):
            mine = make_tenant(base, mine_spec(tmp_path / f"with-{budget}"))
            others = [
                make_tenant(base, neighbour_spec(tmp_path / f"with-{budget}", f"n{i}", token_rows(9, seed=i, high=70)))
                for i in range(3)
            ]
            run_all(base, [others[0], mine, *others[1:]], budget)
            assert same_bytes(flat(mine), expected), f"token budget {budget}"
    finally:
        torch.set_num_threads(before)


def test_a_neighbours_loss_times_10000_and_its_clip_change_nothing(tmp_path):
    base = tiny_hooked()
    expected = alone(base, tmp_path / "alone")
    mine, other = make_tenant(base, mine_spec(tmp_path)), make_tenant(base, neighbour_spec(tmp_path))
    plan = other._micro_batches.of_step
    other._micro_batches.of_step = lambda *step: [
        dataclasses.replace(m, loss_scale=m.loss_scale * 1e4) for m in plan(*step)
    ]
    run_all(base, [mine, other])
    assert same_bytes(flat(mine), expected)


@pytest.mark.slow
def test_a_neighbour_with_twice_the_tokens_changes_nothing(tmp_path):
    base = tiny_hooked()
    found = []
    for name, high in (("short", 20), ("long", 90)):
        mine = make_tenant(base, mine_spec(tmp_path / name))
        run_all(
            base, [make_tenant(base, neighbour_spec(tmp_path / name, rows=token_rows(19, 6, high // 2, high))), mine]
        )
        found.append((flat(mine), [row["loss"] for row in metric_rows(mine.output_dir)]))
    assert same_bytes(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_weight_decay_of_one_never_reaches_an_idle_other(tmp_path):
    base = tiny_hooked()
    trainer = CoTrainer(base, 10)  # room for one of them only
    idle = make_tenant(base, mine_spec(tmp_path))
    busy = make_tenant(base, neighbour_spec(tmp_path))
    before = flat(idle)
    trainer.attach(busy)
    trainer.attach(idle)
    trainer.set_order(["neighbour", "mine"])
    trainer.step()
    assert busy.progress.step == 1
    assert idle.progress.step == 0
    assert same_bytes(flat(idle), before)


@pytest.mark.slow
def test_one_who_joins_late_starts_its_own_step_count_and_moments(tmp_path):
    """Bias correction, schedule and epochs begin at the joiner's own first step."""
    base = tiny_hooked()
    expected = alone(base, tmp_path / "alone")
    trainer = CoTrainer(base, 256)
    trainer.attach(make_tenant(base, neighbour_spec(tmp_path, max_steps=60)))
    for _ in range(50):
        trainer.step()
    late = make_tenant(base, mine_spec(tmp_path))
    assert not late.optimizer.state
    trainer.attach(late)
    trainer.step()
    while not trainer.idle:
        trainer.step()
    assert int(late.optimizer.state[late.weights.flat]["step"]) == late.progress.step == 8
    assert same_bytes(flat(late), expected)


@pytest.mark.parametrize("poison", ["nan", "raises"])
@pytest.mark.slow
def test_a_poisoned_neighbour_ends_alone_and_others_are_bit_identical(tmp_path, poison):
    base = tiny_hooked()
    expected = alone(base, tmp_path / "alone")
    mine, other = make_tenant(base, mine_spec(tmp_path)), make_tenant(base, neighbour_spec(tmp_path))
    trainer = CoTrainer(base, 256)
    trainer.attach(other)
    trainer.attach(mine)
    for number in range(200):
        if number == 3:
            if poison == "nan":
                other.weights.flat.data[5] = float("nan")
            else:  # a token that the embedding does not have: the shared forward raises for everyone
                other.data.train.input_ids[:] = 10_000
        trainer.step()
        if trainer.idle:
            break
    reports = {report.job_id: report for report in trainer.reports()}
    assert reports["mine"].state is TenantState.SUCCEEDED
    assert reports["neighbour"].state is TenantState.FAILED
    wanted = "loss became nan at optimizer step" if poison == "nan" else "index out of range"
    assert wanted in reports["neighbour"].reason
    assert same_bytes(flat(mine), expected)
    assert np.isfinite([row["loss"] for row in metric_rows(mine.output_dir)]).all()


def test_a_neighbour_cancelled_half_way_changes_nothing(tmp_path):
    base = tiny_hooked()
    expected = alone(base, tmp_path / "alone")
    mine, other = make_tenant(base, mine_spec(tmp_path)), make_tenant(base, neighbour_spec(tmp_path, save_steps=1))
    trainer = CoTrainer(base, 256)
    trainer.attach(mine)
    trainer.attach(other)
    while not trainer.idle:
        trainer.step()
        if other.progress.step == 4:
            trainer.detach("neighbour", keep=False)
    states = {report.job_id: report.state for report in trainer.reports()}
    assert states == {"mine": TenantState.SUCCEEDED, "neighbour": TenantState.CANCELLED}
    assert not list(other.output_dir.glob("*checkpoint*"))
    assert not (other.output_dir / "adapter_model.safetensors").exists()
    assert same_bytes(flat(mine), expected)


def test_padding_of_the_flat_buffer_stays_zero(tmp_path):
    """Rank 3 leaves gaps between tensors; decay, clip and Adam must not fill them."""
    base = tiny_hooked()
    tenant = make_tenant(
        base,
        mine_spec(
            tmp_path, lora={"r": 3, "target_modules": ["up_proj"]}, training={**MINE["training"], "max_steps": 5}
        ),
    )
    gaps = torch.ones_like(tenant.weights.flat.data, dtype=torch.bool)
    start = tenant.weights.flat.data_ptr()
    for pair in tenant.weights.layers.values():
        for tensor in pair:
            first = (tensor.data_ptr() - start) // 4
            gaps[first : first + tensor.numel()] = False
    assert gaps.any()
    run_all(base, [tenant])
    assert not tenant.weights.flat.data[gaps].any()
    assert tenant.weights.flat.data[~gaps].any()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.slow
def test_running_out_of_memory_costs_a_smaller_batch_never_a_job(tmp_path, device):
    """A device that takes 40 tokens at a time; more raises what torch raises on CUDA, or on a CPU."""
    base = tiny_hooked()
    expected = alone(base, tmp_path / "alone", lora={"r": 4})
    run_forward = base.hidden

    def little_memory(batch):
        if batch.tokens > 40:
            if device == "cpu":
                torch.empty(2**55, dtype=torch.uint8)
            raise torch.OutOfMemoryError(f"{batch.tokens} tokens")
        return run_forward(batch)

    base.hidden = little_memory
    mine = make_tenant(base, mine_spec(tmp_path, lora={"r": 4}))
    hopeless = make_tenant(base, neighbour_spec(tmp_path, rows=token_rows(5, low=50, high=60)))
    trainer = run_all(base, [mine, hopeless])
    reports = {report.job_id: report for report in trainer.reports()}
    assert reports["mine"].state is TenantState.SUCCEEDED
    torch.testing.assert_close(flat(mine), expected, atol=1e-5, rtol=0)
    assert reports["neighbour"].state is TenantState.FAILED
    assert (
        "does not fit into the actor's memory; lower training.cutoff_len if that is long" in reports["neighbour"].reason
    )


def test_a_job_that_fits_into_no_memory_leaves_the_others_the_token_budget_that_they_had(tmp_path):
    """One adapter runs out of memory however little of it is run, for its rank say; the others' batches fit."""
    base = tiny_hooked()
    rules = {"max_steps": 12, "per_device_train_batch_size": 4}
    good = [make_tenant(base, make_spec(tmp_path, f"good-{i}", None, {"r": 4}, rules)) for i in range(3)]
    bad = make_tenant(base, make_spec(tmp_path, "bad", None, {"r": 4}, rules))
    run_forward = base.hidden

    def hidden(batch):
        if any(segment.weights is bad.weights for segment in batch.segments):
            raise torch.OutOfMemoryError("tried to allocate 7 GiB")
        return run_forward(batch)

    base.hidden = hidden
    trainer = CoTrainer(base, 1024)
    for tenant in (*good, bad):
        trainer.attach(tenant)
    trainer.step()
    (report,) = (report for report in trainer.reports() if report.state is TenantState.FAILED)
    assert report.job_id == "bad"
    assert "tried to allocate 7 GiB" in report.reason
    assert trainer.memory_shortages > 1
    assert trainer.token_budget == 1024
    trainer.step()
    assert trainer.batch_adapters == 3


@pytest.mark.parametrize("where", ["forward", "optimizer"])
def test_an_error_after_which_nothing_runs_on_the_device_is_charged_to_no_job(tmp_path, where):
    base = tiny_hooked()
    tenants = [make_tenant(base, mine_spec(tmp_path)), make_tenant(base, neighbour_spec(tmp_path))]

    def fails(*_):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    if where == "forward":
        base.hidden = fails
    else:
        tenants[1].optimizer.step = fails
    trainer = CoTrainer(base)
    for tenant in tenants:
        trainer.attach(tenant)
    with pytest.raises(torch.AcceleratorError):
        trainer.step()
    assert {report.state for report in trainer.reports()} == {TenantState.TRAINING}


@pytest.mark.parametrize("words", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"])
def test_a_device_that_is_only_full_is_not_lost(words):
    assert is_out_of_memory(RuntimeError(words))
    assert not is_device_lost(torch.AcceleratorError(words))
    assert not is_device_lost(RuntimeError("index out of range in self"))


def test_a_token_budget_that_memory_lowered_rises_when_an_adapter_leaves_but_not_above_the_limit():
    budget = TokenBudget(1000)
    budget.ran_out(600)
    assert budget.tokens == 300
    budget.adapter_left()
    assert budget.tokens == 600
    budget.passed_limit(400)
    for _ in range(100):
        budget.adapter_left()
    assert budget.tokens == 400
    budget.wanted = 50
    assert budget.tokens == 50


def test_larger_batches_are_tried_again_after_a_while_and_later_each_time_that_is_in_vain():
    budget, waits = TokenBudget(1000), []
    for _ in range(3):
        budget.ran_out(1000)
        assert budget.tokens == 500
        waits.append(next(number for number in range(1, 1000) if budget.kept()))
        assert budget.tokens == 1000
    assert waits == [100, 200, 400]
    assert not any(budget.kept() for _ in range(1000))  # nothing is held back any more
    budget.ran_out(1000)
    assert not any(budget.kept() for _ in range(399))
    assert budget.kept()


def test_a_backward_that_breaks_off_half_way_leaves_no_gradient_behind(tmp_path, monkeypatch):
    """Memory runs out in the middle of a backward: the layers behind it have added their gradients already."""
    from gpu_actor.operators import multi_adapter_linear

    base = tiny_hooked()
    expected = alone(base, tmp_path / "alone")
    original, calls = multi_adapter_linear.base_product_backward, []
    wrapped = multi_adapter_linear.MultiAdapterLinear
    fifth = [module.base for module in base.model.modules() if isinstance(module, wrapped)][5]

    def breaks_once(grad, layer, spans, *added):
        if layer is fifth:
            calls.append(len(spans))
            if len(calls) == 3:
                raise torch.OutOfMemoryError("once")
        return original(grad, layer, spans, *added)

    monkeypatch.setattr(multi_adapter_linear, "base_product_backward", breaks_once)
    mine, other = make_tenant(base, mine_spec(tmp_path)), make_tenant(base, neighbour_spec(tmp_path))
    trainer = run_all(base, [mine, other], token_budget=2000)
    assert calls[2] > 1, "the break must hit a shared batch"
    assert {report.state for report in trainer.reports()} == {TenantState.SUCCEEDED}
    assert same_bytes(flat(mine), expected)


@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_running_in_parts_gives_the_same_update_dropout_included(tmp_path, family, monkeypatch):
    """Packed, and padded rows whose width depends on the part; in fp64, where only another mask can differ.

    As on CUDA, the mask of a sequence depends on how many numbers are drawn for it.
    """
    monkeypatch.setattr(
        update, "dropout_mask", lambda seed, index, p, like: dropout_mask(seed + like.numel(), index, p, like)
    )
    base = BaseModel.serve("tiny", family_model(family, dtype=torch.float64))
    training = {"max_steps": 4, "per_device_train_batch_size": 5, "learning_rate": 1e-3}
    found = []
    for name, cap in (("whole", 10_000), ("parts", 50)):
        spec = make_spec(tmp_path / name, "mine", token_rows(13, 3), {"r": 4, "lora_dropout": 0.3}, training)
        tenant = make_tenant(base, spec)
        trainer = CoTrainer(base)
        trainer.micro_batch_cap = cap
        trainer.attach(tenant)
        assert (len(tenant.pending) > 1) == (name == "parts")
        while not trainer.idle:
            trainer.step()
        found.append(flat(tenant))
    assert float(found[0].abs().max()) > 0
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-10)
