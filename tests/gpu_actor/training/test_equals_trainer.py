"""A co-trained adapter equals the one that transformers' Trainer and PEFT make of the same job alone."""

import pytest
import torch

from support.engine import make_spec, make_tenant, run_all, tiny_hooked
from support.jobs import JOBS
from support.oracle import adapter_tensors, largest_difference, metric_rows, plain_loop, train_alone
from support.tiny import tiny_model


def train_together(tmp_path, base, budget, jobs=JOBS):
    specs = {name: make_spec(tmp_path, name, job["rows"], job["lora"], job["training"]) for name, job in jobs.items()}
    tenants = {name: make_tenant(base, spec) for name, spec in specs.items()}
    starts = {name: adapter_tensors(tenant.weights) for name, tenant in tenants.items()}
    run_all(base, list(tenants.values()), budget)
    return specs, starts, {name: adapter_tensors(tenant.weights) for name, tenant in tenants.items()}


@pytest.mark.slow
def test_co_trained_adapters_equal_solo_trainer_in_fp32(tmp_path):
    """On LLaMA. Other families: `test_families.py`."""
    specs, starts, ours = train_together(tmp_path, tiny_hooked(), budget=150)
    for name, job in JOBS.items():
        theirs, log = train_alone(tiny_model(), specs[name], job["rows"], starts[name])
        assert len(log) >= 13
        assert len(log) == len(metric_rows(specs[name].output_dir))
        assert largest_difference(starts[name], theirs) > 1e-3, "the oracle did not train"
        assert largest_difference(ours[name], theirs) < 1e-4


@pytest.mark.slow
def test_co_trained_adapters_equal_a_solo_loop_in_fp64(tmp_path):
    base = tiny_hooked(dtype=torch.float64)
    specs, starts, ours = train_together(tmp_path, base, budget=150)
    for name, job in JOBS.items():
        theirs = plain_loop(tiny_model(dtype=torch.float64), specs[name], job["rows"], starts[name])
        assert largest_difference(starts[name], theirs) > 1e-3, "the oracle did not train"
        assert largest_difference(ours[name], theirs) < 1e-10


@pytest.mark.slow
def test_metrics_equal_the_log_of_trainer(tmp_path):
    jobs = {"wide": JOBS["wide"]}
    specs, starts, _ = train_together(tmp_path, tiny_hooked(), budget=100, jobs=jobs)
    _, log = train_alone(tiny_model(), specs["wide"], JOBS["wide"]["rows"], starts["wide"])
    for mine, theirs in zip(metric_rows(specs["wide"].output_dir), log, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert mine["epoch"] == pytest.approx(theirs["epoch"], abs=1e-6)
        assert mine["learning_rate"] == pytest.approx(theirs["learning_rate"], rel=1e-6)
        assert mine["step"] == theirs["step"]


@pytest.mark.slow
def test_joining_late_and_leaving_early_changes_nothing(tmp_path):
    """The second job joins at the first one's step 5; a third leaves half-way."""
    from gpu_actor.training.trainer import CoTrainer

    base = tiny_hooked()
    specs = {
        name: make_spec(tmp_path, name, JOBS[name]["rows"], JOBS[name]["lora"], JOBS[name]["training"]) for name in JOBS
    }
    early, late, leaver = (make_tenant(base, specs[name]) for name in ("wide", "plain", "unmasked"))
    starts = {tenant.spec.name: adapter_tensors(tenant.weights) for tenant in (early, late)}
    trainer = CoTrainer(base, 150)
    trainer.attach(early)
    trainer.attach(leaver)
    while not trainer.idle:
        trainer.step()
        if early.progress.step == 5 and "plain" not in trainer.tenant_ids():
            trainer.attach(late)
        if leaver.progress.step == 7:
            trainer.detach("unmasked", keep=False)
    for tenant in (early, late):
        name = tenant.spec.name
        theirs, _ = train_alone(tiny_model(), specs[name], JOBS[name]["rows"], starts[name])
        assert largest_difference(adapter_tensors(tenant.weights), theirs) < 1e-4
