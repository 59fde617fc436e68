"""Early stop: a run that diverges, one that over-fits, and one that is told to stop."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from gpu_actor.contract.config import AdapterSpec, EarlyStopConfig
from gpu_actor.contract.report import TenantState
from gpu_actor.training.early_stop import Watch, diverged, overfitted
from gpu_actor.training.trainer import CoTrainer
from support.engine import make_spec, make_tenant, tiny_hooked
from support.oracle import metric_rows
from support.tiny import token_rows


def with_rules(spec, **rules):
    return AdapterSpec(**{**spec.model_dump(), "early_stop": rules})


def run(base, *tenants):
    trainer = CoTrainer(base)
    for tenant in tenants:
        trainer.attach(tenant)
    while not trainer.idle:
        trainer.step()
    return {report.job_id: report for report in trainer.reports()}


def evaluations(spec):
    rows = [json.loads(line) for line in Path(spec.output_dir, "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}


def test_the_start_is_taken_in_the_first_steps_and_then_stays():
    watch = Watch()
    for step, loss in enumerate([3.0, 2.0, 2.0, 2.0, 2.0, 0.0], start=1):
        watch = watch.after_step(step, loss)
    assert watch.start_loss == pytest.approx(2.0 + 0.8**4)
    assert watch.mean_loss == pytest.approx(watch.start_loss * 0.8)


def test_divergence_waits_for_the_warm_up():
    watch = Watch(mean_loss=7.0, start_loss=2.0)
    config = EarlyStopConfig(diverged_above=3.0)
    assert diverged(config, watch, step=20, warmup_steps=20) is None
    assert "3 times its start (2)" in diverged(config, watch, step=21, warmup_steps=20)
    assert diverged(EarlyStopConfig(), watch, step=21, warmup_steps=0) is None


def test_patience_counts_evaluations_that_do_not_improve_enough():
    watch = Watch()
    for step, loss in ((1, 2.0), (2, 1.95), (3, 1.5), (4, 1.45)):
        watch = watch.after_evaluation(step, loss, min_delta=0.1)
    assert (watch.best_loss, watch.best_step, watch.stale) == (1.5, 3, 1)
    assert overfitted(EarlyStopConfig(patience=2, min_delta=0.1), watch) is None
    assert "step 3" in overfitted(EarlyStopConfig(patience=1, min_delta=0.1), watch)


def test_a_run_that_over_fits_ends_with_its_best_adapter(tmp_path):
    base = tiny_hooked()
    rules = {"learning_rate": 0.02, "max_steps": 60, "per_device_train_batch_size": 4, "eval_steps": 2}
    rules |= {"lr_scheduler_type": "constant"}
    make = lambda name, **more: make_spec(tmp_path, name, token_rows(10), {"r": 8}, {**rules, **more}, {"val_size": 4})  # noqa: E731
    spec = with_rules(make("job"), patience=3)
    report = run(base, make_tenant(base, spec))["job"]
    seen = evaluations(spec)
    best = min(seen, key=seen.get)
    assert report.state is TenantState.SUCCEEDED
    assert report.step == best + 3 * 2 < 60
    assert f"step {best}" in report.reason
    short = make("short", max_steps=best)
    short = short.model_copy(update={"dataset": spec.dataset})
    run(base, make_tenant(base, short))
    assert _adapter(spec) == _adapter(short)  # as if it had been trained to its best step and no further
    files = {path.name for path in Path(spec.output_dir).iterdir() if path.is_file()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "checksums.json", "metrics.jsonl"}


def _adapter(spec):
    return Path(spec.output_dir, "adapter_model.safetensors").read_bytes()


def test_a_run_that_was_interrupted_stops_at_the_same_step(tmp_path):
    base = tiny_hooked()
    rules = {"learning_rate": 0.02, "max_steps": 60, "per_device_train_batch_size": 4, "eval_steps": 2}
    whole = with_rules(make_spec(tmp_path, "whole", token_rows(10), {"r": 8}, rules, {"val_size": 4}), patience=3)
    cut = whole.model_copy(update={"job_id": "cut", "output_dir": str(tmp_path / "cut")})
    expected = run(base, make_tenant(base, whole))["whole"]
    trainer = CoTrainer(base)
    trainer.attach(make_tenant(base, cut))
    while trainer.reports()[0].step < expected.step - 3:
        trainer.step()
    trainer.detach("cut", keep=True)
    report = run(base, make_tenant(base, cut))["cut"]
    assert (report.step, report.reason) == (expected.step, expected.reason)
    assert _adapter(cut) == _adapter(whole)


OVERFITTING = {
    "learning_rate": 0.02,
    "per_device_train_batch_size": 4,
    "eval_steps": 2,
    "lr_scheduler_type": "constant",
}


def until_step(base, spec, step):
    """A process that is lost after this optimizer step."""
    trainer = CoTrainer(base)
    trainer.attach(make_tenant(base, spec))
    while trainer.reports()[0].step < step:
        trainer.step()


def test_a_restarted_run_never_exports_an_adapter_of_its_lost_future(tmp_path):
    """The best adapter is that of the step which the checkpoint names, and not of a step that was made after it."""
    base = tiny_hooked()
    training = {**OVERFITTING, "learning_rate": 0.002, "max_steps": 40, "save_steps": 5}

    def make(name, **more):
        return make_spec(tmp_path, name, token_rows(10), {"r": 8}, {**training, **more}, {"val_size": 4})

    spec = with_rules(make("job"), patience=9)
    until_step(base, spec, 9)
    losses = evaluations(spec)
    assert min(losses, key=losses.get) == 8  # step 8 was the best one when the process was lost
    resumed = make_tenant(base, spec, attempt=2)
    assert (resumed.progress.step, resumed.progress.watch.best_step) == (5, 4)
    trainer = CoTrainer(base)
    trainer.attach(resumed)
    trainer.finish("job", "a rung")
    (report,) = trainer.reports()
    assert report.reason == "a rung; the adapter is that of step 4, which has the lowest evaluation loss"
    short = make("short", max_steps=4).model_copy(update={"dataset": spec.dataset})
    run(base, make_tenant(base, short))
    assert _adapter(spec) == _adapter(short)


def test_a_best_adapter_that_is_gone_is_no_other_one(tmp_path):
    base = tiny_hooked()
    spec = make_spec(tmp_path, "job", token_rows(10), {"r": 8}, {**OVERFITTING, "max_steps": 40}, {"val_size": 4})
    trainer = CoTrainer(base)
    trainer.attach(make_tenant(base, with_rules(spec, patience=9)))
    while not trainer.reports()[0].step > 2:
        trainer.step()
    for folder in Path(spec.output_dir).glob("checkpoint-best-*"):
        shutil.rmtree(folder)
    trainer.finish("job", "a rung")
    (report,) = trainer.reports()
    assert report.state is TenantState.FAILED
    assert "checkpoint-best-2" in report.reason


def test_few_best_adapters_lie_about(tmp_path):
    base = tiny_hooked()
    training = {**OVERFITTING, "learning_rate": 0.002, "max_steps": 40, "eval_steps": 1, "save_steps": 4}
    spec = with_rules(make_spec(tmp_path, "job", token_rows(10), {"r": 8}, training, {"val_size": 4}), patience=9)
    trainer = CoTrainer(base)
    trainer.attach(make_tenant(base, spec))
    seen = set()
    while trainer.reports()[0].step < 11:
        trainer.step()
        seen.add(tuple(sorted(int(p.name.split("-")[-1]) for p in Path(spec.output_dir).glob("checkpoint-best-*"))))
    newer = {(4, 8), (4, 8, 9), (4, 8, 10), (4, 8, 11)}  # each checkpoint that is kept may be the one to go on from
    assert seen == {(1,), (2,), (3,), (4,), (4, 5), (4, 6), (4, 7), *newer}


def test_a_run_to_its_end_says_that_its_adapter_is_an_earlier_one(tmp_path):
    base = tiny_hooked()
    spec = make_spec(tmp_path, "job", token_rows(10), {"r": 8}, {**OVERFITTING, "max_steps": 20}, {"val_size": 4})
    report = run(base, make_tenant(base, with_rules(spec, patience=50)))["job"]
    best = min(evaluations(spec), key=evaluations(spec).get)
    assert best < 20
    assert report.reason == f"the adapter is that of step {best}, which has the lowest evaluation loss"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_evaluation_loss_that_is_not_finite_fails_the_job(tmp_path, value):
    """NaN is smaller than nothing: it would be the best loss for ever, and no JSON in metrics.jsonl."""
    base = tiny_hooked()
    run_forward = base.hidden

    def hidden(batch):
        found = run_forward(batch)
        return found if torch.is_grad_enabled() else found * value

    base.hidden = hidden
    spec = make_spec(tmp_path, "job", token_rows(10), {"r": 8}, {**OVERFITTING, "max_steps": 20}, {"val_size": 4})
    report = run(base, make_tenant(base, with_rules(spec, patience=2)))["job"]
    assert (report.state, report.step) == (TenantState.FAILED, 2)
    assert report.reason.startswith("the evaluation loss became nan at optimizer step 2")
    assert "NaN" not in Path(spec.output_dir, "metrics.jsonl").read_text()


def test_a_run_that_diverges_fails_alone_with_its_reason(tmp_path):
    base = tiny_hooked()
    wild = {"learning_rate": 5.0, "max_steps": 60, "per_device_train_batch_size": 4, "max_grad_norm": 0.0}
    spec = with_rules(make_spec(tmp_path, "wild", token_rows(10), {"r": 8}, wild), diverged_above=1.03)
    calm = make_spec(tmp_path, "calm", token_rows(10), {"r": 4}, {"max_steps": 12, "per_device_train_batch_size": 4})
    reports = run(base, make_tenant(base, spec), make_tenant(base, calm))
    assert reports["wild"].state is TenantState.FAILED
    assert reports["wild"].reason.startswith("diverged")
    assert math.isfinite(metric_rows(spec.output_dir)[-1]["loss"])
    assert reports["calm"].state is TenantState.SUCCEEDED


def test_a_job_that_is_told_to_stop_exports_its_last_whole_step(tmp_path):
    base = tiny_hooked()
    training = {"max_steps": 50, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    training |= {"lr_scheduler_type": "constant"}
    spec = make_spec(tmp_path, "told", token_rows(12), {"r": 4}, training)
    trainer = CoTrainer(base, token_budget=1)  # one micro-batch at a time
    trainer.attach(make_tenant(base, spec))
    for _ in range(3 * 4 + 1):
        trainer.step()
    trainer.finish("told", "enough")
    (report,) = trainer.reports()
    assert (report.state, report.step, report.reason) == (TenantState.SUCCEEDED, 4, "enough")
    short = make_spec(tmp_path, "short", token_rows(12), {"r": 4}, {**training, "max_steps": 4})
    run(base, make_tenant(base, short))
    assert _adapter(spec) == _adapter(short)
    assert make_tenant(base, spec).progress.step == 4  # where it would go on, were its end not recorded
