"""Preference jobs among others: company, restarts, references, memory, settings, metrics."""

import json

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError

from gpu_actor.batch.reference_log_probs import ReferenceLogProbs
from gpu_actor.contract.config import TrainingConfig
from gpu_actor.contract.errors import AdapterError
from gpu_actor.contract.report import TenantState
from gpu_actor.paths import file_names
from gpu_actor.training.tenant import Tenant
from gpu_actor.training.trainer import CoTrainer
from support.engine import flat, make_spec, make_tenant, run_all, tiny_hooked
from support.oracle import adapter_tensors, largest_difference, metric_rows, same_bytes
from support.pairs import formula_loop, pair_rows, pair_spec, sums_of
from support.tiny import tiny_model, token_rows

DPO = {"objective": "dpo", "beta": 0.3}
RUN = {
    "learning_rate": 3e-3,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "save_steps": 2,
    "logging_steps": 3,
}


def dpo_spec(folder, name="dpo", rows=None, lora=None, dataset=None, **training):
    rows = pair_rows(13, seed=2) if rows is None else rows
    return pair_spec(
        folder, name, rows, {"r": 4, "lora_dropout": 0.1, **(lora or {})}, {**RUN, **DPO, **training}, dataset
    )


def sft_spec(folder):
    return make_spec(folder, "sft", token_rows(11, seed=9), {"r": 8}, RUN, {"val_size": 2})


def without_time(tenant):
    lines = (tenant.output_dir / file_names.METRICS).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


def trained(base, spec):
    tenant = make_tenant(base, spec)
    run_all(base, [tenant])
    return tenant


def start_adapter(base, folder, seed=7):
    """A finished adapter that differs from the base and from the jobs here in rank, targets and scale."""
    training = {"max_steps": 4, "learning_rate": 2e-2, "seed": seed}
    lora = {"r": 3, "lora_alpha": 12, "target_modules": ["q_proj", "down_proj"]}
    return trained(base, make_spec(folder, "start", token_rows(8, seed=seed), lora, training)).output_dir


@pytest.mark.parametrize("objective", [{}, *({"objective": name, "beta": 0.1} for name in ("cpo", "orpo", "simpo"))])
@pytest.mark.slow
def test_pairs_and_samples_share_batches_and_each_is_bit_identical_to_alone(tmp_path, objective):
    base = tiny_hooked()
    makers = {
        "sft": sft_spec,
        "dpo": lambda folder: dpo_spec(folder, dataset={"val_size": 2}),
        "other": lambda folder: dpo_spec(folder, "other", pair_rows(7, seed=4), loss_type=None, **objective),
    }
    alone = {name: trained(base, make(tmp_path / "alone")) for name, make in makers.items()}
    together = {name: make_tenant(base, make(tmp_path / "together")) for name, make in makers.items()}
    trainer = CoTrainer(base, 400)
    for tenant in together.values():
        trainer.attach(tenant)
    trainer.step()
    assert trainer.batch_adapters == 3
    while not trainer.idle:
        trainer.step()
    for name, tenant in together.items():
        assert same_bytes(flat(tenant), flat(alone[name])), name
        assert without_time(tenant) == without_time(alone[name]), name


@pytest.mark.parametrize("killed_after", [1, 2, 5])
@pytest.mark.slow
def test_a_killed_preference_job_equals_an_uninterrupted_one(tmp_path, killed_after):
    base = tiny_hooked()
    expected = trained(base, dpo_spec(tmp_path / "whole", dataset={"val_size": 2}))
    first = make_tenant(base, dpo_spec(tmp_path, dataset={"val_size": 2}))
    trainer = CoTrainer(base, 20)
    trainer.attach(first)
    while first.progress.step < killed_after or len(first.pending) != 1:
        trainer.step()
    second = make_tenant(base, dpo_spec(tmp_path, dataset={"val_size": 2}), attempt=2)
    run_all(base, [second])
    assert same_bytes(flat(second), flat(expected))
    assert without_time(second) == without_time(expected)


def test_the_reference_of_a_pair_is_computed_once(tmp_path, monkeypatch):
    base = tiny_hooked()
    kept = []
    put = ReferenceLogProbs.put

    def recorded(self, number, *values):
        kept.append((id(self), number))
        put(self, number, *values)

    monkeypatch.setattr(ReferenceLogProbs, "put", recorded)
    tenant = trained(base, dpo_spec(tmp_path, dataset={"val_size": 2}))
    assert tenant.progress.step == 9
    assert len(kept) == len(set(kept)) == 13


@pytest.mark.parametrize("how", ["base", "reference_adapter", "init_adapter"])
def test_the_reference_is_the_one_that_was_asked_for(tmp_path, how):
    """Reference log-probabilities equal PEFT's with that adapter; the base's own with the adapter off."""
    base = tiny_hooked(dtype=torch.float64)
    folder = start_adapter(base, tmp_path)
    rows = pair_rows(4, seed=3)
    lora = {"r": 3, "lora_alpha": 12, "target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.0}
    given = {"base": {}, "reference_adapter": {"reference_adapter": str(folder)}, "init_adapter": {}}[how]
    if how == "init_adapter":
        lora["init_adapter"] = str(folder)
    tenant = make_tenant(base, dpo_spec(tmp_path, rows=rows, lora=lora, max_steps=3, **given))
    pending = tenant.pending
    run_all(base, [tenant])
    stock = tiny_model(dtype=torch.float64)
    model = stock if how == "base" else PeftModel.from_pretrained(stock, str(folder))
    for micro_batch in pending:
        task = micro_batch.task
        for number, found in zip(task.numbers, task.references.of(task.numbers), strict=True):
            for side, value in zip(("chosen", "rejected"), found, strict=True):
                row = rows[number]
                with torch.no_grad():
                    wanted = sums_of(model, row[f"{side}_input_ids"], row[f"{side}_labels"])[0]
                assert value == pytest.approx(float(wanted), rel=1e-5 if how != "base" else 1e-12)


def test_training_against_a_reference_adapter_equals_peft(tmp_path):
    base = tiny_hooked(dtype=torch.float64)
    folder = start_adapter(base, tmp_path)
    rows = pair_rows(6, seed=3)
    spec = dpo_spec(tmp_path, rows=rows, lora={"lora_dropout": 0.0}, reference_adapter=str(folder), logging_steps=1)
    tenant = make_tenant(base, spec)
    start = adapter_tensors(tenant.weights)
    run_all(base, [tenant])
    reference = PeftModel.from_pretrained(tiny_model(dtype=torch.float64), str(folder))
    theirs, losses = formula_loop(tiny_model(dtype=torch.float64), spec, rows, start, reference)
    assert largest_difference(adapter_tensors(tenant.weights), theirs) < 1e-10
    assert [row["loss"] for row in metric_rows(spec.output_dir)] == pytest.approx(losses, rel=1e-9)


def test_a_reference_that_was_not_loaded_is_an_error_never_the_base(tmp_path):
    base = tiny_hooked()
    folder = start_adapter(base, tmp_path)
    spec = dpo_spec(tmp_path, reference_adapter=str(folder))
    data = make_tenant(base, spec).data
    with pytest.raises(AdapterError, match="was not loaded"):
        Tenant(spec, 1, base.new_adapter(spec.lora), data)
    with pytest.raises(AdapterError, match=r"reference adapter of .* cannot be loaded"):
        make_tenant(base, dpo_spec(tmp_path, "none", reference_adapter=str(tmp_path / "nowhere")))


def test_metrics_hold_rewards_of_steps_and_of_held_out_pairs(tmp_path):
    base = tiny_hooked()
    fine = trained(base, dpo_spec(tmp_path / "fine", logging_steps=1, dataset={"val_size": 2}))
    coarse = trained(base, dpo_spec(tmp_path, dataset={"val_size": 2}))
    names = {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")} | {
        "logps/chosen",
        "logps/rejected",
    }
    steps, groups = ([row for row in without_time(tenant) if "loss" in row] for tenant in (fine, coarse))
    for row in steps:
        assert names < row.keys()
        assert row["rewards/margins"] == pytest.approx(row["rewards/chosen"] - row["rewards/rejected"], abs=1e-5)
        assert 0 <= row["rewards/accuracies"] <= 1
    assert steps[-1]["rewards/margins"] > steps[0]["rewards/margins"] + 0.1
    for row, three in zip(groups, (steps[i : i + 3] for i in (0, 3, 6)), strict=True):
        for name in names:
            assert row[name] == pytest.approx(sum(one[name] for one in three) / 3, rel=1e-6, abs=1e-9)
    evaluations = [row for row in without_time(fine) if "eval_loss" in row]
    assert len(evaluations) == 3
    assert {f"eval_{name}" for name in names} < evaluations[0].keys()
    tokens = sum(
        len(side) for row in pair_rows(13, seed=2) for side in (row["chosen_input_ids"], row["rejected_input_ids"])
    )
    held = sum(len(ids) for pair in (fine.data.val[i] for i in range(2)) for ids, _ in pair)
    assert fine.progress.tokens == 3 * (tokens - held)


def little_memory(base, limit):
    """A device that takes `limit` tokens at a time."""
    run_forward = base.hidden

    def hidden(batch):
        if batch.tokens > limit:
            raise torch.OutOfMemoryError(f"{batch.tokens} tokens")
        return run_forward(batch)

    base.hidden = hidden


def test_out_of_memory_splits_by_pairs(tmp_path):
    base = tiny_hooked()
    settings = {"lora": {"lora_dropout": 0.0}, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    expected = trained(base, dpo_spec(tmp_path / "roomy", **settings))
    little_memory(base, 60)
    tight = make_tenant(base, dpo_spec(tmp_path, **settings))
    hopeless = make_tenant(base, dpo_spec(tmp_path, "long", pair_rows(3, answer=(40, 41)), **settings))
    trainer = run_all(base, [tight, hopeless])
    reports = {report.job_id: report for report in trainer.reports()}
    assert reports["dpo"].state is TenantState.SUCCEEDED
    assert tight.split > 1
    torch.testing.assert_close(flat(tight), flat(expected), atol=1e-5, rtol=0)
    assert reports["long"].state is TenantState.FAILED
    assert "one preference pair of" in reports["long"].reason


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_evaluation_that_runs_out_of_memory_shrinks(tmp_path, kind):
    """Memory runs out in evaluation only: its batches shrink, the adapter and the eval_loss are the same."""
    base = tiny_hooked()
    changes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "eval_steps": 2}

    def spec(folder):
        if kind == "dpo":
            return dpo_spec(folder, dataset={"val_size": 4}, **changes)
        return make_spec(folder, "sft", token_rows(14, seed=9), {"r": 4}, {**RUN, **changes}, {"val_size": 4})

    expected = trained(base, spec(tmp_path / "roomy"))
    run_forward = base.hidden

    def hidden(batch):
        if not torch.is_grad_enabled() and len(batch.segments) == 1 and len(batch.lengths) > 2:
            raise torch.OutOfMemoryError("in evaluation")
        return run_forward(batch)

    base.hidden = hidden
    tight = make_tenant(base, spec(tmp_path))
    trainer = run_all(base, [tight])
    assert trainer.reports()[0].state is TenantState.SUCCEEDED
    assert same_bytes(flat(tight), flat(expected))
    for row, wanted in zip(without_time(tight), without_time(expected), strict=True):
        assert row.keys() == wanted.keys()
        assert row.get("eval_loss", 0) == pytest.approx(wanted.get("eval_loss", 0), rel=1e-5)


def test_evaluation_of_one_sample_that_does_not_fit_says_so(tmp_path):
    base = tiny_hooked()
    run_forward = base.hidden

    def hidden(batch):
        if not torch.is_grad_enabled():
            raise torch.OutOfMemoryError("in evaluation")
        return run_forward(batch)

    base.hidden = hidden
    trainer = run_all(base, [make_tenant(base, sft_spec(tmp_path))])
    (report,) = trainer.reports()
    assert report.state is TenantState.FAILED
    assert "does not fit into the actor's memory" in report.reason


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"beta": 0.1},
            r"beta \(0.1\) belongs to the objective dpo or cpo or orpo or simpo or kto, and this job's .* is sft",
        ),
        ({"objective": "orpo", "loss_type": "ipo"}, "loss_type .*belongs to the objective dpo or cpo"),
        ({"objective": "dpo", "cpo_alpha": 1.0}, "cpo_alpha .*belongs to the objective cpo"),
        ({"objective": "cpo", "reference_adapter": "/a"}, "reference_adapter .*belongs to the objective dpo or kto"),
        ({"objective": "dpo", "train_on_inputs": True}, "train_on_inputs .*belongs to the objective sft"),
        ({"objective": "dpo", "loss_type": "ipo", "label_smoothing": 0.1}, "label_smoothing .*loss_type sigmoid"),
        ({"objective": "cpo", "gamma": 0.5}, r"gamma \(0.5\) belongs to the objective simpo, and this job's .* is cpo"),
        ({"objective": "simpo", "loss_type": "sigmoid"}, "loss_type .*belongs to the objective dpo or cpo"),
        ({"objective": "dpo", "label_smoothing": 0.5}, "less than 0.5"),
        ({"objective": "dpo", "beta": 0.0}, "greater than 0"),
        ({"objective": "ppo"}, "'sft', 'dpo', 'cpo', 'orpo', 'simpo' or 'kto'"),
        ({"objective": ["dpo"]}, "'sft', 'dpo', 'cpo', 'orpo', 'simpo' or 'kto'"),
    ],
)
def test_a_field_of_another_objective_is_refused_by_name(fields, message):
    with pytest.raises(ValidationError, match=message):
        TrainingConfig(**fields)


def test_defaults_are_trls_and_survive_a_round_trip():
    from trl import DPOConfig
    from trl.experimental.cpo import CPOConfig
    from trl.experimental.orpo import ORPOConfig

    for objective, config in (("dpo", DPOConfig), ("cpo", CPOConfig), ("orpo", ORPOConfig), ("simpo", CPOConfig)):
        training = TrainingConfig(objective=objective)
        defaults = {name: field.default for name, field in config.__dataclass_fields__.items()}
        for name in ("beta", "label_smoothing", "cpo_alpha", "gamma"):
            if getattr(training, name) is not None:
                assert getattr(training, name) == defaults["simpo_gamma" if name == "gamma" else name]
        assert training.loss_type == ("sigmoid" if objective in ("dpo", "cpo") else None)
        assert TrainingConfig(**training.model_dump()) == training
    assert TrainingConfig().beta is None
