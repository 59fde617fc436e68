"""KTO against TRL's trainer and the paper's formula; its KL whatever the split, company, restarts, memory, settings."""

import json
import math

import pytest
import torch
from pydantic import ValidationError

from gpu_actor.batch.unpaired import KlEstimate
from gpu_actor.contract.config import TrainingConfig
from gpu_actor.contract.errors import AdapterError, DataError
from gpu_actor.contract.report import TenantState
from gpu_actor.data.dataset import load_dataset
from gpu_actor.paths import file_names
from gpu_actor.training.references import read_reference
from gpu_actor.training.tenant import Tenant
from gpu_actor.training.trainer import CoTrainer
from support.engine import flat, make_spec, make_tenant, run_all, tiny_hooked
from support.oracle import adapter_tensors, largest_difference, metric_rows, peft_model, same_bytes
from support.pairs import pair_rows, pair_spec
from support.sample_tokenizers import TWINS, byte_level_tokenizer
from support.tiny import tiny_model, token_rows
from support.unpaired import kto_loss, trl_kto, unpaired_rows, unpaired_spec

RUN = {
    "learning_rate": 3e-3,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "save_steps": 2,
}
WORDS = ["It", "is", "blue", "and", "green", "or", "black", "at", "night", "with", "stars", "they", "say", "still"]


def trained(base, spec):
    tenant = make_tenant(base, spec)
    run_all(base, [tenant])
    return tenant


def kto_spec(folder, name="kto", rows=None, lora=None, dataset=None, **training):
    rows = unpaired_rows(13, seed=2) if rows is None else rows
    settings = {**RUN, "beta": 0.3, "desirable_weight": 1.5, **training}
    return unpaired_spec(folder, name, rows, {"r": 4, "lora_dropout": 0.1, **(lora or {})}, settings, dataset)


def without_time(tenant):
    lines = (tenant.output_dir / file_names.METRICS).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


def texts(count):
    """Questions and answers of differing lengths, two of three wanted."""
    rows = []
    for i in range(count):
        prompt, completion = (
            f"What of {' '.join(WORDS[i % 7 : i % 7 + 2])}?",
            " ".join(WORDS[i % 9 : i % 9 + 1 + i % 5]),
        )
        rows.append({"prompt": prompt, "completion": f" {completion}.", "label": i % 3 != 1})
    return rows


def as_messages(row):
    prompt, completion = row["prompt"], row["completion"].strip()
    return {
        **row,
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
    }


@pytest.mark.parametrize("kind", ["texts", "messages"])
@pytest.mark.slow
def test_a_full_run_from_text_equals_trls_trainer(tmp_path, kind):
    """Batches of three, so that a rotation is no swap; the held-out samples end with a batch of one."""
    weights = {"desirable_weight": 1.4, "undesirable_weight": 0.7} if kind == "texts" else {}
    rows = texts(16) if kind == "texts" else [as_messages(row) for row in texts(16)]
    training = {**RUN, **weights, "beta": 0.3, "num_train_epochs": 2, "shuffle": False, "learning_rate": 1e-2}
    dataset = {"format": "prompt_completion", "val_size": 4}
    spec = unpaired_spec(tmp_path, kind, rows, {"r": 4}, {**training, "lr_scheduler_type": "constant"}, dataset)
    tokenizer = byte_level_tokenizer(TWINS["llama3"][0].replace("\n\n", "\n"))
    tokenizer.pad_token = tokenizer.eos_token
    base = tiny_hooked(vocab_size=512)
    data = load_dataset(spec.dataset, spec.training, lambda: tokenizer, 512)
    tenant = Tenant(spec, 1, base.new_adapter(spec.lora), data, read_reference(base, spec))
    start = adapter_tensors(tenant.weights)
    run_all(base, [tenant])

    held = {tokenizer.decode(data.val[i][0][0]) for i in range(4)}

    def is_held(row):
        said = row if kind == "texts" else {key: row[key][0]["content"] for key in ("prompt", "completion")}
        return any(said["prompt"] in text and said["completion"] in text for text in held)

    train, val = [row for row in rows if not is_held(row)], [row for row in rows if is_held(row)]
    assert (len(train), len(val)) == (12, 4)
    theirs, log, evaluations = trl_kto(tiny_model(vocab_size=512), spec, train, val, start, tokenizer)
    assert largest_difference(start, theirs) > 1e-2, "the oracle did not train"
    assert largest_difference(adapter_tensors(tenant.weights), theirs) < 1e-4
    ours = without_time(tenant)
    steps, evaluated = [row for row in ours if "loss" in row], [row for row in ours if "eval_loss" in row]
    assert (len(steps), len(evaluated)) == (len(log), len(evaluations)) == (4, 2)
    assert max(row["kl"] for row in log) > 0.05, "no KL was ever there to be compared"
    for mine, wanted in zip(steps, log, strict=True):
        for key in ("loss", "kl"):
            assert mine[key] == pytest.approx(wanted[key], abs=1e-4), key
    for mine, wanted in zip(evaluated, evaluations, strict=True):
        assert mine["eval_loss"] == pytest.approx(wanted["eval_loss"], abs=1e-4)


@pytest.mark.parametrize("parts", [1, 2, 6])
def test_a_step_equals_the_papers_formula_in_fp64_however_it_is_split(tmp_path, parts):
    base = tiny_hooked(dtype=torch.float64)
    rows = unpaired_rows(6, seed=3)
    spec = kto_spec(tmp_path, rows=rows, lora={"lora_dropout": 0.0}, per_device_train_batch_size=6, shuffle=False)
    tenant = make_tenant(base, spec)
    noise = torch.randn(len(tenant.weights.flat), generator=torch.Generator().manual_seed(1))
    tenant.weights.flat.data.copy_(0.1 * noise)
    tenant.rewind_step(split=parts)
    trainer = CoTrainer(base, 1)  # one part in each shared batch
    trainer.attach(tenant)
    taken = []
    tenant.take_step = lambda _clip: taken.append(tenant._sums.read()) or torch.zeros(1)
    assert len(tenant.pending) == parts
    while not taken:
        trainer.step()
    loss, figures = taken[0]
    wrapped = peft_model(tiny_model(dtype=torch.float64), spec.lora, adapter_tensors(tenant.weights))
    expected, kl = kto_loss(wrapped, tiny_model(dtype=torch.float64), rows, spec.training)
    expected.backward()
    assert kl > 0.1
    assert loss == pytest.approx(float(expected.detach()), rel=1e-10)
    assert figures["kl"] == pytest.approx(kl, rel=1e-10)
    assert figures["rewards/margins"] == pytest.approx(figures["rewards/chosen"] - figures["rewards/rejected"])
    gradients = adapter_tensors(tenant.weights, gradients=True)
    theirs = {
        key: wrapped.get_parameter(f"base_model.model.{key[0]}.lora_{key[1]}.default.weight").grad for key in gradients
    }
    assert largest_difference(gradients, theirs) < 1e-10


@pytest.mark.slow
def test_in_company_it_is_bit_identical_to_alone(tmp_path):
    """Micro-batches of KTO in parts (the cap is low), among pairs and samples, with dropout and held-out samples."""
    base = tiny_hooked()
    makers = {
        "sft": lambda folder: make_spec(folder, "sft", token_rows(11, seed=9), {"r": 8}, RUN),
        "dpo": lambda folder: pair_spec(folder, "dpo", pair_rows(9, seed=2), {"r": 4}, {**RUN, "objective": "dpo"}),
        "kto": lambda folder: kto_spec(folder, dataset={"val_size": 3}),
        "other": lambda folder: kto_spec(folder, "other", unpaired_rows(8, seed=5), {"r": 2}, seed=7),
    }

    def run(tenants, budget):
        trainer = CoTrainer(base, budget)
        trainer.micro_batch_cap = 40
        for tenant in tenants.values():
            trainer.attach(tenant)
        trainer.step()
        adapters = trainer.batch_adapters
        while not trainer.idle:
            trainer.step()
        return adapters

    alone = {name: make_tenant(base, make(tmp_path / "alone")) for name, make in makers.items()}
    for name, tenant in alone.items():
        assert run({name: tenant}, 60) == 1
    together = {name: make_tenant(base, make(tmp_path / "together")) for name, make in makers.items()}
    assert max(len(tenant.pending) for tenant in together.values()) == 2
    assert run(together, 400) == 4
    for name, tenant in together.items():
        assert same_bytes(flat(tenant), flat(alone[name])), name
        assert without_time(tenant) == without_time(alone[name]), name


def test_a_killed_job_equals_an_uninterrupted_one(tmp_path):
    base = tiny_hooked()
    expected = trained(base, kto_spec(tmp_path / "whole", dataset={"val_size": 3}, logging_steps=3))
    first = make_tenant(base, kto_spec(tmp_path, dataset={"val_size": 3}, logging_steps=3))
    trainer = CoTrainer(base, 20)
    trainer.attach(first)
    while first.progress.step < 2 or len(first.pending) != 1:
        trainer.step()
    second = make_tenant(base, kto_spec(tmp_path, dataset={"val_size": 3}, logging_steps=3), attempt=2)
    run_all(base, [second])
    assert same_bytes(flat(second), flat(expected))
    assert without_time(second) == without_time(expected)
    other = [{**row, "label": not row["label"]} for row in unpaired_rows(13, seed=2)]
    with pytest.raises(AdapterError, match="the data set is no longer the one"):
        make_tenant(base, kto_spec(tmp_path, rows=other, dataset={"val_size": 3}))


def test_little_memory_splits_the_estimate_too(tmp_path):
    base = tiny_hooked()
    settings = {"lora": {"lora_dropout": 0.0}, "per_device_train_batch_size": 6, "gradient_accumulation_steps": 1}
    expected = trained(base, kto_spec(tmp_path / "roomy", **settings))
    run_forward = base.hidden

    def hidden(batch):
        if batch.tokens > 60:
            raise torch.OutOfMemoryError(f"{batch.tokens} tokens")
        return run_forward(batch)

    base.hidden = hidden
    tight = make_tenant(base, kto_spec(tmp_path, **settings))
    trainer = run_all(base, [tight])
    assert trainer.reports()[0].state is TenantState.SUCCEEDED
    assert tight.split > 1
    torch.testing.assert_close(flat(tight), flat(expected), atol=1e-5, rtol=0)


def test_a_figure_is_the_mean_over_the_steps_that_have_it(tmp_path):
    """Steps of wanted answers only have no figures of unwanted ones, and they do not count as zero."""
    base = tiny_hooked()
    rows = [{**row, "label": i >= 6 or i % 2 == 0} for i, row in enumerate(unpaired_rows(12, seed=4))]
    settings = {"rows": rows, "shuffle": False, "num_train_epochs": 1}
    fine = metric_rows(trained(base, kto_spec(tmp_path / "fine", **settings)).output_dir)
    (coarse,) = metric_rows(trained(base, kto_spec(tmp_path, **settings, logging_steps=2)).output_dir)
    assert "logps/rejected" in fine[0]
    assert not {"logps/rejected", "rewards/rejected", "rewards/margins"} & fine[1].keys()
    assert coarse["logps/rejected"] == pytest.approx(fine[0]["logps/rejected"])
    assert coarse["logps/chosen"] == pytest.approx((fine[0]["logps/chosen"] + fine[1]["logps/chosen"]) / 2)


def test_what_is_run_forward_only_is_measured(tmp_path):
    """The scheduler learns a device's speed from it: each text of the KL twice, and at first each answer once."""
    base = tiny_hooked()
    rows = unpaired_rows(6, seed=4, prompt=(3, 4))
    settings = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 1, "num_train_epochs": 4}
    trainer = run_all(base, [make_tenant(base, kto_spec(tmp_path, rows=rows, **settings))], 1000)
    tokens = sum(len(row["input_ids"]) for row in rows)
    samples = trainer.meter.take()  # the first step is a warm-up
    assert [sample.tokens for sample in samples] == [tokens] * len(samples)
    assert {sample.ahead for sample in samples} == {2 * tokens}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"per_device_train_batch_size": 1}, r"per_device_train_batch_size \(1\) must be at least 2 with the .* kto"),
        ({"loss_type": "sigmoid"}, "loss_type .*belongs to the objective dpo or cpo"),
        ({"objective": "dpo", "desirable_weight": 2.0}, r"desirable_weight \(2.0\) belongs to the objective kto"),
        ({"train_on_inputs": True}, "train_on_inputs .*belongs to the objective sft"),
    ],
)
def test_settings_that_do_not_go_with_it(fields, message):
    with pytest.raises(ValidationError, match=message):
        TrainingConfig(**{"objective": "kto", **fields})


def test_a_single_sample_has_nobody_to_be_compared_with(tmp_path):
    with pytest.raises(DataError, match="one sample is left to train on"):
        make_tenant(tiny_hooked(), kto_spec(tmp_path, rows=unpaired_rows(1)))


def test_defaults_are_trls():
    from trl import KTOConfig

    defaults = {name: field.default for name, field in KTOConfig.__dataclass_fields__.items()}
    training = TrainingConfig(objective="kto")
    for name in ("beta", "desirable_weight", "undesirable_weight"):
        assert getattr(training, name) == defaults[name]
    assert TrainingConfig(**training.model_dump()) == training


def test_a_policy_that_moved_the_other_way_has_no_kl():
    """TRL's clamp; a value that is no number is not taken for none."""
    for log_p, expected in (((-3.0, -4.0, -1.0, -1.0), 0.0), ((-1.0, -2.0, -3.0, -3.0), 1.5)):
        estimate = KlEstimate([None, None])
        estimate.settle(*log_p)
        assert estimate.value == expected
    estimate.settle(math.nan, 0.0, 0.0, 0.0)
    assert math.isnan(estimate.value)
