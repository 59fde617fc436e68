"""From a file to token ids and labels: formats, cut and dropped samples, the evaluation split, the arrays."""

import json
import tracemalloc

import numpy as np
import pytest

from gpu_actor.contract.errors import DataError
from gpu_actor.data.samples import SampleSet
from support.repository import DEMO_DATA
from support.sample_files import GOOD, TOKENIZER, as_lists, load, no_tokenizer, tokens, write
from support.sample_tokenizers import CHATML, LLAMA2, byte_level_tokenizer


def learned_text(labels):
    return TOKENIZER.decode([token for token in labels if token != -100])


# --- formats through the whole loader ---


@pytest.mark.parametrize(
    ("record", "whole", "learned"),
    [
        (
            {"instruction": "Add", "input": "1 2", "output": "3"},
            "<|im_start|>user\nAdd\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n",
            "3<|im_end|>",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n",
            "b<|im_end|>",
        ),
        ({"prompt": "a: ", "completion": "b"}, "a: b</s>", "b</s>"),
        (
            {
                "prompt": [{"role": "user", "content": "a"}],
                "completion": [{"role": "assistant", "content": "b"}],
            },
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n",
            "b<|im_end|>",
        ),
        ({"text": "Hello"}, "Hello</s>", "Hello</s>"),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "JSON"])
def test_every_format_from_either_kind_of_file(tmp_path, record, whole, learned, suffix):
    path = tmp_path / f"data.{suffix}"
    path.write_text(json.dumps(record) if suffix == "jsonl" else json.dumps([record]))
    ids, labels = load(path).train[0]
    assert (TOKENIZER.decode(ids), learned_text(labels)) == (whole, learned)
    assert ids.dtype == labels.dtype == np.int32


def test_tokens_need_no_tokenizer(tmp_path):
    path = write(tmp_path, {"input_ids": [1, 2, 3], "labels": [-100, 2, -100]}, {"input_ids": [4, 5]})
    train = load(path, no_tokenizer, vocab_size=6).train
    assert as_lists(train) == [([1, 2, 3], [-100, 2, -100]), ([4, 5], [4, 5])]


def test_train_on_inputs(tmp_path):
    ids, labels = load(write(tmp_path, GOOD), train_on_inputs=True).train[0]
    assert labels.tolist() == ids.tolist()


def test_train_on_inputs_contradicts_labels(tmp_path):
    path = write(tmp_path, {"input_ids": [1, 2], "labels": [-100, 2]})
    with pytest.raises(DataError, match=r"data\.jsonl:1: labels: training\.train_on_inputs is true, but"):
        load(path, train_on_inputs=True)


def test_first_record_settles_auto(tmp_path):
    path = write(tmp_path, {"text": "a"}, {"prompt": "a", "completion": "b"})
    with pytest.raises(DataError, match=r"data\.jsonl:2: text: missing; a record of the format text needs text"):
        load(path)


def test_named_format_wins_over_the_fields(tmp_path):
    path = write(tmp_path, {**GOOD, "text": "Hello"})
    assert TOKENIZER.decode(load(path, data_format="text").train[0][0]) == "Hello</s>"


def test_tokenizer_that_does_not_belong_to_the_model(tmp_path):
    highest = load(write(tmp_path, GOOD)).train.input_ids.max()
    load(write(tmp_path, GOOD), vocab_size=highest + 1)
    message = rf"data\.jsonl:1: the tokenizer gives token {highest}, .* only tokens below {highest};"
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, GOOD), vocab_size=highest)


def test_template_error_names_the_line(tmp_path):
    path = write(
        tmp_path,
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}]},
    )
    with pytest.raises(DataError, match=r"data\.jsonl:2: the chat template refuses .*only user and assistant roles"):
        load(path, lambda: byte_level_tokenizer(LLAMA2))


# --- the demo's data ---


@pytest.mark.parametrize("path", sorted(DEMO_DATA.glob("*.jsonl")), ids=lambda path: path.stem)
def test_demo_data_loads_whole(path):
    tokenizer = byte_level_tokenizer(CHATML, eos="<|im_end|>")
    loaded = load(path, lambda: tokenizer)
    assert 40 <= len(loaded.train) <= 60
    assert (loaded.truncated, loaded.dropped) == (0, 0)
    for ids, _ in loaded.train:
        text = tokenizer.decode(ids)
        assert text.rstrip().endswith("<|im_end|>")
        # The demo asks this at the end; an adapter must not just recite it.
        assert "capital of France" not in text


# --- truncation ---


def test_long_samples_are_cut_and_counted(tmp_path):
    loaded = load(write(tmp_path, *tokens(2, 5, 6, 9)), no_tokenizer, cutoff_len=5)
    assert loaded.train.lengths().tolist() == [2, 5, 5, 5]
    assert (loaded.truncated, loaded.dropped) == (2, 0)


def test_samples_whose_answer_is_cut_away_are_dropped_and_counted(tmp_path):
    path = write(
        tmp_path,
        {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, -100, 4]},  # cut away
        {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]},
        {"input_ids": [1, 2], "labels": [1, -100]},  # nothing predicts the first token
        {"input_ids": [1]},
    )
    loaded = load(path, no_tokenizer, cutoff_len=3)
    assert as_lists(loaded.train) == [([1, 2, 3], [-100, -100, 3])]
    assert (loaded.truncated, loaded.dropped) == (2, 3)


def test_nothing_left_to_train_on(tmp_path):
    path = write(tmp_path, GOOD, GOOD, GOOD)
    with pytest.raises(DataError, match=r"all 3 samples were dropped, .* first 4 tokens; raise training\.cutoff_len"):
        load(path, cutoff_len=4)


def test_counts_are_those_of_the_whole_file(tmp_path):
    path = write(tmp_path, *tokens(9, 9, 9, 9, 1, 1))
    loaded = load(path, no_tokenizer, cutoff_len=5, val_size=0.5)
    assert (len(loaded.train), len(loaded.val), loaded.truncated, loaded.dropped) == (2, 2, 4, 2)


# --- split ---


@pytest.mark.parametrize(
    ("val_size", "held"),
    [(0, 0), (0.0, 0), (0.01, 1), (0.1, 2), (0.5, 10), (0.95, 19), (1, 1), (1.0, 1), (19, 19)],
)
def test_split_sizes(tmp_path, val_size, held):
    loaded = load(write(tmp_path, *tokens(*[3] * 20)), no_tokenizer, val_size=val_size)
    assert (len(loaded.train), len(loaded.val)) == (20 - held, held)


@pytest.mark.parametrize("val_size", [0.99, 20, 21])
def test_split_that_leaves_nothing(tmp_path, val_size):
    path = write(tmp_path, *tokens(*[3] * 20))
    message = rf"dataset\.val_size {val_size} holds out 2\d of 20 usable samples, which leaves none"
    with pytest.raises(DataError, match=message):
        load(path, no_tokenizer, val_size=val_size)


def test_a_single_sample_cannot_be_split(tmp_path):
    with pytest.raises(DataError, match="holds out 1 of 1 usable samples"):
        load(write(tmp_path, *tokens(3)), no_tokenizer, val_size=0.1)


def test_split_is_a_partition_in_file_order_decided_by_the_seed(tmp_path):
    path = write(tmp_path, *tokens(*range(2, 42)))

    def parts(seed):
        loaded = load(path, no_tokenizer, val_size=10, seed=seed)
        return [[ids[0] for ids, _ in part] for part in (loaded.train, loaded.val)]

    train, val = parts(1)
    assert sorted(train + val) == list(range(40))
    assert train == sorted(train)
    assert val == sorted(val)
    assert parts(1) == [train, val]
    assert parts(2) != [train, val]
    np.random.seed(0)  # the global generator must not matter
    assert parts(1) == [train, val]


def test_split_keeps_samples_whole(tmp_path):
    loaded = load(write(tmp_path, *tokens(*range(2, 22))), no_tokenizer, val_size=7)
    for part in (loaded.train, loaded.val):
        for ids, labels in part:
            assert ids.tolist() == labels.tolist() == [ids[0]] * (ids[0] + 2)


# --- SampleSet ---


def test_sample_set():
    flat = np.arange(6, dtype=np.int32)
    samples = SampleSet(flat, -flat, np.array([0, 1, 4, 6]))
    assert len(samples) == 3
    assert samples.lengths().tolist() == [1, 3, 2]
    assert as_lists(samples) == [([0], [0]), ([1, 2, 3], [-1, -2, -3]), ([4, 5], [-4, -5])]
    assert as_lists(samples.select(np.array([2, 0]))) == [([4, 5], [-4, -5]), ([0], [0])]
    assert as_lists(samples.select(np.array([2, 0])).select(np.array([1]))) == [([0], [0])]
    assert len(samples.select(np.array([], dtype=np.int64))) == 0
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"sample {index} of 3"):
            samples[index]


@pytest.mark.slow
def test_memory_is_that_of_the_tokens(tmp_path):
    count = 20_000
    path = write(tmp_path, *["{" + f'"input_ids": {[300] * 10}' + "}"] * count)
    tracemalloc.start()
    try:
        train = load(path, no_tokenizer).train
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    stored = train.input_ids.nbytes + train.labels.nbytes + train.offsets.nbytes
    assert len(train) == count
    assert peak < 2.5 * stored  # lists of Python ints would take about 5 times as much
