"""Files that are broken or hostile: errors with file and line, and never anything but an error of Loray."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_actor.contract.errors import DataError, LorayError
from support.sample_files import GOOD, VOCAB, as_lists, load, write


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


@settings(max_examples=300)
@given(
    lines=st.lists(HOSTILE, max_size=4),
    good=st.booleans(),
    name=st.sampled_from(["d.jsonl", "d.json"]),
    data_format=st.sampled_from(
        ["auto", "alpaca", "messages", "prompt_completion", "text", "tokens", "sharegpt", "preference"]
    ),
    objective=st.sampled_from(["sft", "dpo"]),
)
@pytest.mark.slow
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
