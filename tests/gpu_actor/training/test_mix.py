"""A mix of data sets is what its samples would be in one file, counted set by set, and resumed anywhere."""

import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpu_actor.contract.config import DataSource, TrainingConfig
from gpu_actor.contract.errors import DataError
from gpu_actor.data.dataset import MixedSource, load_dataset
from gpu_actor.training.sample_order import DataCursor
from support.engine import flat, make_spec, make_tenant, run_all, tiny_hooked
from support.interrupted import started, without_time
from support.oracle import metric_rows
from support.pairs import pair_rows
from support.sample_files import TOKENIZER, VOCAB
from support.tiny import token_rows, write_rows

TRAINING = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "save_steps": 3}


def mixed(*parts):
    return [
        MixedSource(str(number), count, DataSource(path="x", weight=weight).samples_per_epoch(count))
        for number, (count, weight) in enumerate(parts)
    ]


def taken(cursor, epoch):
    plans = [cursor.step(epoch * cursor.steps_per_epoch + i) for i in range(cursor.steps_per_epoch)]
    return [number for plan in plans for group in plan.micro_batches for number in group]


@given(
    st.lists(st.tuples(st.integers(1, 12), st.floats(0.01, 3.5)), min_size=1, max_size=4),
    st.integers(1, 5),
    st.booleans(),
    st.integers(0, 99),
)
def test_an_epoch_takes_what_the_weights_say_and_no_sample_twice_as_often_as_another(parts, batch, shuffle, seed):
    training = TrainingConfig(per_device_train_batch_size=batch, num_train_epochs=6.0, shuffle=shuffle, seed=seed)
    mix, samples = mixed(*parts), sum(count for count, _ in parts)
    cursor = DataCursor(training, samples, mix)
    first, seen = 0, [taken(cursor, epoch) for epoch in range(6)]
    for source in mix:
        own = range(first, first + source.samples)
        assert all(sum(number in own for number in numbers) == source.per_epoch for numbers in seen)
        counts = Counter(number for numbers in seen for number in numbers if number in own)
        times = [counts[number] for number in own]
        assert max(times) - min(times) <= 1
        first += source.samples
    for step in (0, cursor.total_steps // 2, cursor.total_steps - 1):
        assert DataCursor(training, samples, mix).step(step) == cursor.step(step)
    if not shuffle:
        assert all(numbers == sorted(numbers) or max(weight for _, weight in parts) > 1 for numbers in seen)


@pytest.fixture(scope="module")
def base():
    return tiny_hooked()


def mix_spec(folder, name, weights, training=None, **entry):
    """A job that mixes two files of its own."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    write_rows(folder / name / "b.jsonl", token_rows(5, seed=2))
    other = {"path": str(folder / name / "b.jsonl"), "format": "tokens", "weight": weights[1], **entry}
    data = {"weight": weights[0], "mix": [DataSource(**other)]}
    return make_spec(
        folder, name, token_rows(7, seed=1), {"r": 4, "lora_dropout": 0.1}, {**TRAINING, **(training or {})}, data
    )


def test_whole_weights_give_the_adapter_of_one_file_with_the_samples_so_often(base, tmp_path):
    mix = make_tenant(base, mix_spec(tmp_path, "mix", (2, 1)))
    a, b = token_rows(7, seed=1), token_rows(5, seed=2)
    whole = make_tenant(base, make_spec(tmp_path, "whole", [*a, *a, *b], {"r": 4, "lora_dropout": 0.1}, TRAINING))
    run_all(base, [mix, whole])
    assert torch.equal(flat(mix), flat(whole))
    rows = metric_rows(mix.output_dir)
    assert len(rows) == 2 * 10
    for row in rows:
        assert row["samples/data.jsonl"] + row["samples/b.jsonl"] in (1, 2)
        assert row["tokens/data.jsonl"] + row["tokens/b.jsonl"] == row["tokens"]
    assert sum(row["samples/data.jsonl"] for row in rows) == 2 * 14
    assert sum(row["samples/b.jsonl"] for row in rows) == 2 * 5
    plain = [{name: value for name, value in row.items() if "/" not in name} for row in without_time(mix.output_dir)]
    assert plain == without_time(whole.output_dir)


def test_a_mix_of_fractions_goes_on_bit_by_bit_wherever_it_was_interrupted(base, tmp_path):
    whole = make_tenant(base, mix_spec(tmp_path / "whole", "job", (0.5, 1.3), val_size=2))
    run_all(base, [whole])
    spec = mix_spec(tmp_path / "parts", "job", (0.5, 1.3), val_size=2)
    for step in (1, 3, 4):
        trainer, tenant = started(base, spec, step)
        trainer.detach(tenant.spec.job_id, keep=True)
    again = make_tenant(base, spec, attempt=9)
    run_all(base, [again])
    assert torch.equal(flat(again), flat(whole))
    weights = [(tenant.output_dir / "adapter_model.safetensors").read_bytes() for tenant in (again, whole)]
    assert weights[0] == weights[1]
    assert without_time(again.output_dir) == without_time(whole.output_dir)
    assert [row for row in without_time(whole.output_dir) if "eval_loss" in row]


def test_each_set_is_read_in_its_own_way_and_errors_name_it(tmp_path, base):
    (tmp_path / "a.jsonl").write_text('{"prompt": "1 + 1 =", "completion": " 2"}\n')
    (tmp_path / "b.csv").write_text("q,a\nWho?,Me\n")
    write_rows(tmp_path / "c.jsonl", [{"input_ids": [3, 4, 5], "labels": [3, 4, 5]}])
    entries = [
        {"path": str(tmp_path / "b.csv"), "columns": {"instruction": "q", "output": "a"}, "weight": 2.0},
        {"path": str(tmp_path / "c.jsonl")},
    ]
    spec = make_spec(tmp_path, "job", None, dataset={"path": str(tmp_path / "a.jsonl"), "format": "auto"})
    config = spec.dataset.model_copy(update={"mix": [DataSource(**entry) for entry in entries]})
    loaded = load_dataset(config, TrainingConfig(), lambda: TOKENIZER, VOCAB)
    assert [(source.name, source.samples, source.per_epoch) for source in loaded.mix] == [
        ("a.jsonl", 1, 1),
        ("b.csv", 1, 2),
        ("c.jsonl", 1, 1),
    ]
    apart = [
        load_dataset(spec.dataset.model_copy(update=entry), TrainingConfig(), lambda: TOKENIZER, VOCAB).train[0]
        for entry in ({}, *entries)
    ]
    for number, (ids, labels) in enumerate(apart):
        assert [side.tolist() for side in loaded.train[number]] == [ids.tolist(), labels.tolist()]
    (tmp_path / "c.jsonl").write_text('{"input_ids": [3, "x"]}\n')
    with pytest.raises(DataError, match=r"dataset\[2\]: .*c\.jsonl:1: "):
        load_dataset(config, TrainingConfig(), lambda: TOKENIZER, VOCAB)
    pairs = [{name: row[name] for name in row} for row in pair_rows(2)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    with pytest.raises(DataError, match=r"dataset\[2\]: "):
        load_dataset(config, TrainingConfig(), lambda: TOKENIZER, VOCAB)
