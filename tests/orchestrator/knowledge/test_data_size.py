"""How much work a job's data are, guessed from the file."""

import json

import pytest

from gpu_actor.contract.config import DatasetConfig
from orchestrator.knowledge.data_size import guess_size


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DatasetConfig(path=str(path))


def test_a_small_file_is_counted_exactly(tmp_path):
    size = guess_size(write(tmp_path / "a.jsonl", [{"input_ids": [1] * n, "labels": [1] * n} for n in (10, 20, 30)]))
    assert (size.samples, size.mean_tokens) == (3, 20)


def test_a_large_file_is_counted_from_its_size(tmp_path):
    rows = [{"input_ids": [1] * (40 + n % 20), "labels": [1] * (40 + n % 20)} for n in range(5000)]
    size = guess_size(write(tmp_path / "a.jsonl", rows))
    assert size.samples == pytest.approx(5000, rel=0.03)
    assert size.mean_tokens == pytest.approx(49.5, rel=0.03)


@pytest.mark.parametrize(("val_size", "left"), [(0.25, 6), (3, 5), (8, 1)])
def test_held_out_samples_are_not_trained_on(tmp_path, val_size, left):
    dataset = write(tmp_path / "a.jsonl", [{"text": "four " * 8}] * 8).model_copy(update={"val_size": val_size})
    assert guess_size(dataset).samples == left


def test_text_counts_by_its_letters_wherever_they_are(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "x" * 36}, {"role": "assistant", "content": "y" * 55}]}]
    assert guess_size(write(tmp_path / "a.jsonl", rows)).mean_tokens == (4 + 36 + 9 + 55) / 4


def test_an_array_is_read_as_far_as_it_goes(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "abcd" * 50}] * 1000))
    assert guess_size(DatasetConfig(path=str(path))).samples == pytest.approx(1000, rel=0.02)


@pytest.mark.parametrize("name", ["gone.jsonl", "table.parquet", "empty.jsonl"])
def test_what_cannot_tell_is_not_guessed(tmp_path, name):
    if name != "gone.jsonl":
        (tmp_path / name).write_bytes(b"" if name == "empty.jsonl" else b"PAR1")
    assert guess_size(DatasetConfig(path=str(tmp_path / name))) is None


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize(
    "text",
    [
        "[" * 60_000,
        '{"a":' * 12_000,
        '[{"a":' * 8_000,
        '{"a":' * 800 + "1" + "}" * 800 + "\n",  # readable, and deeper than it is looked into
        "[" * 900 + "]" * 900 + "\n",
        '{"a": ' + "9" * 5000 + "}\n",
        '{"text": "\\ud800"}\n',
        "\x00" * 100,
        "[1, 2,",
    ],
    ids=[
        "deep array",
        "deep object",
        "deep mix",
        "nested object",
        "nested array",
        "digits",
        "surrogate",
        "zeros",
        "cut",
    ],
)
def test_no_file_stops_the_guess(tmp_path, text, suffix):
    """It runs in every look at the cluster: what it raises would stop the scheduler for everybody."""
    path = tmp_path / f"a{suffix}"
    path.write_bytes(text.encode())
    size = guess_size(DatasetConfig(path=str(path)))
    assert size is None or size.samples >= 1


def test_a_folder_and_a_name_that_no_file_can_have_are_not_guessed(tmp_path):
    assert guess_size(DatasetConfig(path=str(tmp_path))) is None
    assert guess_size(DatasetConfig(path="a" * 5000 + ".jsonl")) is None


def test_the_suffix_may_be_in_capitals(tmp_path):
    assert guess_size(write(tmp_path / "A.JSONL", [{"text": "abcd"}] * 3)).samples == 3
