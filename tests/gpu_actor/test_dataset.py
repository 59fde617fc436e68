import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_tokenizers import CHATML, LLAMA2, byte_level_tokenizer

from gpu_actor.config import DatasetConfig, TrainingConfig
from gpu_actor.dataset import SampleSet, load_dataset
from gpu_actor.errors import DataError, LorayError

TOKENIZER = byte_level_tokenizer(CHATML)
VOCAB = len(TOKENIZER)
DEMO_DATA = Path(__file__).parents[2] / "configs" / "data"
GOOD = {"instruction": "Hello", "output": "Hi"}


def no_tokenizer():
    raise RuntimeError("a tokenizer was loaded, though the data is tokenised")


def load(path, tokenizer=lambda: TOKENIZER, data_format="auto", val_size=0.0, vocab_size=VOCAB, **training):
    config = DatasetConfig(path=str(path), format=data_format, val_size=val_size)
    return load_dataset(config, TrainingConfig(**training), tokenizer, vocab_size)


def write(folder, *records, name="data.jsonl"):
    """A .jsonl file; strings and bytes are written as they are."""
    lines = [
        record if isinstance(record, bytes) else (record if isinstance(record, str) else json.dumps(record)).encode()
        for record in records
    ]
    path = folder / name
    path.write_bytes(b"\n".join(lines))
    return path


def tokens(*lengths):
    """One tokenised record per length; sample i consists of tokens i."""
    return [{"input_ids": [i] * length} for i, length in enumerate(lengths)]


def as_lists(samples):
    return [(ids.tolist(), labels.tolist()) for ids, labels in (samples[i] for i in range(len(samples)))]


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


# --- files ---


def test_blank_lines_bom_and_carriage_returns(tmp_path):
    path = write(tmp_path, b'\xef\xbb\xbf{"text": "a"}\r', b"", b"  \t", b'{"text": "b"}', b"")
    assert len(load(path).train) == 2
    listed = tmp_path / "data.json"
    listed.write_bytes(b'\xef\xbb\xbf\r\n[ {"text": "a"} ,\r\n{"text": "b"}\n]\n')
    assert as_lists(load(listed).train) == as_lists(load(path).train)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            b'{"text": "a"',
            r":2: not valid JSON: Expecting ',' delimiter \(column 13\); each line must hold one whole",
        ),
        (b'{"text": "\xff"}', r":2: not UTF-8: byte 0xff \(column 11\); save the file as UTF-8"),
        (b'["a"]', r":2: a record must be a JSON object, not \['a'\]"),
        (b"null", r":2: a record must be a JSON object, not None"),
        (b"[" * 100_000, r":2: not valid JSON: nested too deeply"),
        (b'{"text": ' + b"9" * 5000 + b"}", r":2: not valid JSON: Exceeds the limit"),
        (b'{"text": NaN}', r":2: text: must be a string, not nan"),
        (b'{"text": "\\ud800"}', r":2: text: holds half of a surrogate pair"),
    ],
)
def test_broken_lines(tmp_path, line, message):
    with pytest.raises(DataError, match=r"data\.jsonl" + message):
        load(write(tmp_path, {"text": "a"}, line))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"data": []}', r":1: a \.json file must hold one list of objects; .* called \.jsonl"),
        (b'\n\n{"text": "a"}\n{"text": "b"}', r":3: a \.json file must hold one list"),
        (b'[{"text": "a"},\n{"text": }]', r":2: not valid JSON: Expecting value \(column 10\)"),
        (b'[{"text": "a"}\n{"text": "b"}]', r":2: not valid JSON: Expecting ',' or '\]' \(column 1\)"),
        (b'[{"text": "a"}] x', r":1: not valid JSON: Extra data after the list"),
        (b'[{"text": "a"},\n]', r":2: not valid JSON"),
        (b'[{"text": "a"}', r":1: not valid JSON: Expecting ',' or '\]'"),
        (b"[", r":1: not valid JSON"),
        (b'[{"text": "a"},\n\n 7]', r":3: a record must be a JSON object, not 7"),
        (b'[\n{"text": "\xe9"}]', r":2: not UTF-8: byte 0xe9 \(column 11\)"),
        (b"[\n" + b"[" * 100_000, r":2: not valid JSON: nested too deeply"),
    ],
)
def test_broken_json_files(tmp_path, content, message):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.json" + message):
        load(path)


def test_several_problems_are_counted_and_the_first_five_shown(tmp_path):
    path = write(tmp_path, {"text": "good"}, *[{"text": i} for i in range(7)])
    with pytest.raises(DataError) as caught:
        load(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: 7 of 8 records cannot be used:"
    assert lines[1:-1] == [f"{path}:{i + 2}: text: must be a string, not {i}" for i in range(5)]
    assert lines[-1] == "... and 2 more"


def test_two_problems_are_both_shown(tmp_path):
    with pytest.raises(DataError) as caught:
        load(write(tmp_path, {"text": 1}, {"text": "a"}, "{"), data_format="text")
    lines = str(caught.value).splitlines()
    assert [line.split("data.jsonl")[1][:3] for line in lines] == [": 2", ":1:", ":3:"]


@pytest.mark.parametrize(
    ("name", "content"), [("d.jsonl", b""), ("d.jsonl", b"\n \n"), ("d.json", b""), ("d.json", b"[ ]")]
)
def test_empty_file(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"d\.jsonl?: holds no record; a data set needs at least one"):
        load(path)


def test_missing_file_folder_and_wrong_name(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: no such file; give the path of"):
        load(tmp_path / "none.jsonl")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match=r"folder\.json: no such file"):
        load(tmp_path / "folder.json")
    with pytest.raises(DataError, match=r"data\.txt: the name must end in \.jsonl .*, \.csv or \.parquet"):
        load(write(tmp_path, GOOD, name="data.txt"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=6),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "messages", "text", "labels", "from", "value", "tool_calls", "function"]
            )
            | st.text(max_size=3),
            children,
            max_size=3,
        )
    ),
    max_leaves=8,
)
FIELDS = [
    *("instruction", "input", "output", "messages", "prompt", "completion"),
    *("text", "input_ids", "labels", "system", "label", "history", "tools", "conversations"),
    *("chosen", "rejected", "chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels"),
]
HOSTILE = st.one_of(
    st.binary(max_size=30),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4).map(lambda value: json.dumps(value).encode()),
    st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool"]) | JSON, "content": JSON}),
        max_size=3,
    ).map(lambda value: json.dumps({"messages": value}).encode()),
    st.lists(st.integers(-101, VOCAB + 1), max_size=3).map(lambda ids: json.dumps({"input_ids": ids}).encode()),
)


@settings(max_examples=300, deadline=None)
@given(
    lines=st.lists(HOSTILE, max_size=4),
    good=st.booleans(),
    name=st.sampled_from(["d.jsonl", "d.json"]),
    data_format=st.sampled_from(
        ["auto", "alpaca", "messages", "prompt_completion", "text", "tokens", "sharegpt", "preference"]
    ),
    objective=st.sampled_from(["sft", "dpo"]),
)
def test_hostile_files_raise_nothing_but_loray_errors(tmp_path_factory, lines, good, name, data_format, objective):
    path = tmp_path_factory.mktemp("hostile") / name
    lines = [json.dumps(GOOD).encode(), *lines] if good else lines
    path.write_bytes(b"\n".join(lines) if name.endswith("l") else b"[" + b",".join(lines) + b"]")
    try:
        loaded = load(path, data_format=data_format, objective=objective)
    except LorayError as error:
        str(error).encode("utf-8")  # can be printed
    else:
        assert len(loaded.train) > 0
        sides = [loaded.train.chosen, loaded.train.rejected] if objective == "dpo" else [loaded.train]
        assert all(side.input_ids.min() >= 0 and side.input_ids.max() < VOCAB for side in sides)


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


# --- preference pairs ---


def pair(chosen, rejected, prompt=(1, 2)):
    """A tokenised pair."""
    record = {}
    for side, ids in (("chosen", chosen), ("rejected", rejected)):
        record[f"{side}_input_ids"] = [*prompt, *ids]
        record[f"{side}_labels"] = [-100] * len(prompt) + list(ids)
    return record


def test_pairs_are_held_side_by_side(tmp_path):
    path = write(tmp_path, *[pair([3, 4], [5 + i]) for i in range(5)])
    loaded = load(path, no_tokenizer, objective="dpo", val_size=2)
    both = [p for part in (loaded.train, loaded.val) for p in (part[i] for i in range(len(part)))]
    assert (len(loaded.train), len(loaded.val)) == (3, 2)
    assert loaded.train.lengths().tolist() == [7, 7, 7]
    assert sorted(rejected[0][2] for _, rejected in both) == [5, 6, 7, 8, 9]
    (ids, labels), (other_ids, other_labels) = loaded.train[0]
    assert (ids.tolist(), labels.tolist()) == ([1, 2, 3, 4], [-100, -100, 3, 4])
    assert other_ids.tolist()[:2] == [1, 2]
    assert other_labels.tolist() == [-100, -100, other_ids[2]]
    assert load(path, no_tokenizer, objective="cpo").train.select(np.array([4, 0]))[0][1][0].tolist() == [1, 2, 9]


def test_equal_and_cut_pairs_are_dropped_and_counted(tmp_path):
    path = write(
        tmp_path,
        pair([3, 4], [3, 4]),  # equal
        pair([3, 4, 5, 6], [3, 4, 5, 7]),  # equal once they are cut
        pair([3, 4, 5, 6], [3]),  # cut
        pair([3], [4], prompt=[1] * 9),  # no answer is left
        pair([3], [4]),
    )
    loaded = load(path, no_tokenizer, objective="orpo", cutoff_len=5)
    assert (len(loaded.train), loaded.truncated, loaded.dropped) == (2, 3, 3)


def test_a_pair_needs_an_answer_on_both_sides(tmp_path):
    one_sided = {**pair([3], [4]), "rejected_labels": [-100] * 3}
    loaded = load(write(tmp_path, one_sided, pair([3], [4])), no_tokenizer, objective="dpo")
    assert (len(loaded.train), loaded.dropped) == (1, 1)


def test_only_equal_pairs(tmp_path):
    message = r"all 2 pairs were dropped \(2: both sides of the pair are the same\); check them"
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, pair([3], [3]), pair([4], [4])), no_tokenizer, objective="dpo")
    same = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(DataError, match="both sides of the pair are the same"):
        load(write(tmp_path, {"chosen": same, "rejected": same}), objective="dpo")


@pytest.mark.parametrize("data_format", ["auto", "preference"])
def test_pairs_for_a_supervised_job(tmp_path, data_format):
    path = write(tmp_path, *[{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3)
    with pytest.raises(DataError) as caught:
        load(path, data_format=data_format)
    assert str(caught.value) == (
        f"{path}:1: holds preference pairs, but training.objective is sft, which learns from samples; set the "
        "objective to dpo, cpo or orpo, or give samples"
    )


def test_samples_for_a_preference_job(tmp_path):
    message = r"holds samples of the format alpaca, but training\.objective is dpo, which learns from preference pairs"
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, GOOD), objective="dpo")


# --- chat template of the job ---


def load_with_template(path, template):
    config = DatasetConfig(path=str(path), chat_template=template)
    return load_dataset(config, TrainingConfig(), lambda: TOKENIZER, VOCAB)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{% for a in range(99999) %}x{% endfor %}{% endmacro %}"
        "{% for a in range(99999) %}{{ f() }}{% endfor %}",
    ],
)
def test_a_template_that_loops_is_stopped(tmp_path, template):
    path = write(tmp_path, *[GOOD] * 3)
    with pytest.raises(DataError, match=r"data\.jsonl:1: the chat template made more than 1,000,000 steps"):
        load_with_template(path, template)


def test_a_template_with_macros_may_not_recurse_for_ever(tmp_path):
    template = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"
    with pytest.raises(DataError, match="the chat template refuses the conversation: maximum recursion depth"):
        load_with_template(write(tmp_path, GOOD), template)


def test_a_template_that_raises_for_some_samples_is_counted(tmp_path):
    template = "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('no') }}{% endif %}"
    template += "{{ m.role + m.content }}{% endfor %}"
    path = write(tmp_path, GOOD, {**GOOD, "instruction": "bad"}, GOOD, {**GOOD, "output": "bad"})
    with pytest.raises(DataError) as caught:
        load_with_template(path, template)
    assert str(caught.value).splitlines() == [
        f"{path}: 2 of 4 records cannot be used:",
        f"{path}:2: the chat template refuses the conversation: no",
        f"{path}:4: the chat template refuses the conversation: no",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b" \n", "is empty"),
        (b"\xff", "is not UTF-8"),
        (b"x" * (2**20 + 1), "is larger than 1 MiB"),
    ],
)
def test_template_files_that_cannot_be_used(tmp_path, content, message):
    file = tmp_path / "chat.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=rf"data\.jsonl:1: dataset\.chat_template: .*chat\.jinja {message}"):
        load_with_template(write(tmp_path, GOOD), str(file))


def test_a_template_for_samples_that_need_none(tmp_path):
    with pytest.raises(DataError, match=r"dataset\.chat_template is given, but these samples are no conversations"):
        load_with_template(write(tmp_path, {"text": "a"}), CHATML)


def test_tools_that_the_template_does_not_write(tmp_path):
    record = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": [{}]}
    with pytest.raises(DataError, match="tools: the chat template writes no tools"):
        load(write(tmp_path, record))
    calls = [{"name": "f", "arguments": {}}]
    with pytest.raises(DataError, match=r"writes the tool calls of message 0 \(role assistant\) 0 times"):
        load(write(tmp_path, {"messages": [{"role": "assistant", "content": "", "tool_calls": calls}]}))


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
