"""Whole runs as a GPU makes them, on the CPU: equal to Trainer and PEFT, and hardly more kernels for more adapters."""

import pytest
import torch

from benchmarks.common.kernel_counter import KernelCounter
from gpu_actor.batch.shared_batch import pack
from gpu_actor.operators.products import GroupedProducts, LoopedProducts
from gpu_actor.training.trainer import CoTrainer
from support.engine import (
    flat,
    losses_of,
    make_spec,
    make_tenant,
    micro_batch,
    run_all,
    served_as_on_a_gpu,
    tiny_hooked,
)
from support.jobs import JOBS
from support.oracle import adapter_tensors, largest_difference, metric_rows, peft_model, peft_tensor, train_alone
from support.pairs import pair_rows, pair_spec
from support.tiny import tiny_model, token_rows
from support.unpaired import unpaired_rows, unpaired_spec


@pytest.mark.slow
def test_grouped_adapters_equal_solo_trainer_in_fp32(tmp_path):
    """Jobs that differ in everything, among them one that is clipped in every step and one that never is."""
    base = served_as_on_a_gpu(tiny_model(), GroupedProducts())
    specs = {name: make_spec(tmp_path, name, job["rows"], job["lora"], job["training"]) for name, job in JOBS.items()}
    tenants = {name: make_tenant(base, spec) for name, spec in specs.items()}
    starts = {name: adapter_tensors(tenant.weights) for name, tenant in tenants.items()}
    run_all(base, list(tenants.values()), 400)
    for name, job in JOBS.items():
        theirs, log = train_alone(tiny_model(), specs[name], job["rows"], starts[name])
        assert largest_difference(starts[name], theirs) > 1e-3, "the oracle did not train"
        assert largest_difference(adapter_tensors(tenants[name].weights), theirs) < 1e-4, name
        norms = [row["grad_norm"] for row in metric_rows(specs[name].output_dir)]
        assert norms == pytest.approx([entry["grad_norm"] for entry in log], rel=1e-3)


RULES = {"learning_rate": 1e-3, "max_steps": 20, "per_device_train_batch_size": 2, "shuffle": False}


@pytest.mark.slow
def test_a_bf16_base_trains_as_peft_does_under_autocast(tmp_path):
    """Loss of every step within 2e-2, and the whole update points the same way: cosine at least 0.99."""
    rows = [token_rows(40, seed=number, low=20) for number in range(2)]
    specs = [make_spec(tmp_path, f"job-{i}", rows[i], {"r": 8, "lora_alpha": 12}, RULES) for i in range(2)]
    base = served_as_on_a_gpu(tiny_model(dtype=torch.bfloat16), GroupedProducts())
    tenants = [make_tenant(base, spec) for spec in specs]
    starts = [adapter_tensors(tenant.weights) for tenant in tenants]
    run_all(base, tenants, 1000)
    theirs, losses = under_autocast(tiny_model(dtype=torch.bfloat16), specs[1], rows[1], starts[1])
    ours = adapter_tensors(tenants[1].weights)
    updates = [torch.cat([(end[key] - starts[1][key]).flatten() for key in starts[1]]) for end in (ours, theirs)]
    assert float(torch.nn.functional.cosine_similarity(*updates, dim=0)) >= 0.99
    assert [row["loss"] for row in metric_rows(specs[1].output_dir)] == pytest.approx(losses, rel=2e-2)


def under_autocast(model, spec, rows, start):
    """PEFT's adapter in fp32 on a bf16 base, as `Trainer(bf16=True)` trains it: tensors, and the loss of each step."""
    wrapped = peft_model(model, spec.lora, start)
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    for key, values in start.items():
        peft_tensor(wrapped, *key).data.copy_(values)
    optimizer = torch.optim.AdamW(trained, lr=RULES["learning_rate"], weight_decay=0.0)
    losses = []
    for step in range(RULES["max_steps"]):
        batch = rows[2 * step : 2 * step + 2]
        optimizer.zero_grad()
        labels = [torch.tensor(row["labels"])[1:] for row in batch]
        with torch.autocast("cpu", torch.bfloat16):
            logits = [wrapped(input_ids=torch.tensor(row["input_ids"])[None]).logits[0, :-1] for row in batch]
        loss = torch.nn.functional.cross_entropy(torch.cat(logits).float(), torch.cat(labels))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RULES["learning_rate"] * (1 - step / RULES["max_steps"])
        optimizer.step()
        losses.append(float(loss.detach()))
    return {key: peft_tensor(wrapped, *key).detach().clone() for key in start}, losses


def jobs_of_every_objective(folder):
    rules = {"learning_rate": 3e-3, "max_steps": 3, "per_device_train_batch_size": 2}
    for number, objective in enumerate(("dpo", "orpo", "simpo")):
        yield pair_spec(folder, objective, pair_rows(6, number), {"r": 4}, {**rules, "objective": objective})
    yield unpaired_spec(folder, "kto", unpaired_rows(6, 3), {"r": 4, "lora_dropout": 0.0}, rules)
    accumulated = {**rules, "gradient_accumulation_steps": 2, "max_grad_norm": 0.1, "loraplus_lr_ratio": 4.0}
    for name, lora in (("sft", {"r": 12}), ("dora", {"r": 4, "use_dora": True})):
        yield make_spec(folder, name, token_rows(9, 4), lora, accumulated)


def test_every_objective_in_one_batch_is_what_it_is_segment_by_segment(tmp_path):
    """One run of the head, norms found together, references and accumulation: only rounding is left."""
    ends = []
    model = tiny_model(dtype=torch.float64)
    for base in (served_as_on_a_gpu(model, LoopedProducts()), tiny_hooked(dtype=torch.float64)):
        tenants = [make_tenant(base, spec) for spec in jobs_of_every_objective(tmp_path / str(len(ends)))]
        starts = [flat(tenant) for tenant in tenants]
        run_all(base, tenants, 2000)
        ends.append(tenants)
    for start, mine, other in zip(starts, *ends, strict=True):
        assert float((flat(other) - start).abs().max()) > 1e-3
        torch.testing.assert_close(flat(mine), flat(other), rtol=0, atol=1e-6)
        for one, two in zip(metric_rows(mine.output_dir), metric_rows(other.output_dir), strict=True):
            same = {key: value for key, value in two.items() if key != "time"}
            assert {key: one[key] for key in same} == pytest.approx(same, rel=1e-7, abs=1e-7)


def small(layers):
    """Sizes that the grouped kernel takes: 100 columns, as most tests have them, are too odd for it."""
    model = tiny_model(dtype=torch.bfloat16, num_hidden_layers=layers, intermediate_size=128)
    return served_as_on_a_gpu(model, GroupedProducts())


def kernels_of_a_step(tmp_path, layers, jobs, samples, rank=16):
    """Kernels outside attention of one shared step: forward, backward, clip, AdamW."""
    trainer = CoTrainer(small(layers), 10_000)
    for number in range(jobs):
        rules = {"max_steps": 9, "per_device_train_batch_size": samples}
        spec = make_spec(
            tmp_path / f"{layers}-{jobs}", f"job-{number}", token_rows(32, number, 5, 9), {"r": rank}, rules
        )
        trainer.attach(make_tenant(trainer.base, spec))
    trainer.step()
    with KernelCounter() as counter:
        trainer.step()
    assert trainer.batch_adapters == jobs
    assert counter.attention == layers * 2 * jobs * samples
    return counter.total - counter.attention


def kernels_of_the_base(layers):
    """The same of forward and backward with no adapter at all."""
    base = small(layers)
    with KernelCounter() as counter:
        losses_of(base, pack([micro_batch(None, [5, 9])], base.device))[0].backward()
    return counter.total - counter.attention


def test_sixteen_adapters_take_hardly_more_kernels_than_one(tmp_path):
    """The same sixteen sequences: 16 jobs of one, or one job of 16. Segment by segment it was 8.8 times as many."""
    few, many = (kernels_of_a_step(tmp_path, 16, jobs, 16 // jobs) for jobs in (1, 16))
    assert many <= 1.15 * few


@pytest.mark.parametrize("rank", [16, 12])
def test_all_adapters_together_take_eight_kernels_in_a_linear_layer(tmp_path, rank):
    """Forward, backward and the sums of gradients of sixteen; segment by segment they took 17 each.

    A rank that is padded is copied for all layers at once.
    """
    with_adapters = kernels_of_a_step(tmp_path, 3, 16, 1, rank) - kernels_of_a_step(tmp_path, 2, 16, 1, rank)
    assert with_adapters - (kernels_of_the_base(3) - kernels_of_the_base(2)) <= 7 * 8
