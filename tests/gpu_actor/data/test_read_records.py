"""Files of every kind give the same records, broken ones say where, and none is held in memory as objects."""

import csv
import json
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_actor.contract.config import DatasetConfig
from gpu_actor.contract.errors import DataError
from gpu_actor.data.readers import json_files
from gpu_actor.data.readers.read_records import is_hub_dataset, read_records
from gpu_actor.data.readers.record import LongRecordError

ROWS = [
    {"question": "What, exactly?", "answer": 'He said "no".\nThen he left.', "n": "1"},
    {"question": "Où ?", "answer": "在这里", "n": "2"},
    {"question": "Again", "answer": "So be it", "n": "3"},
]


def write(folder, rows, kind):
    path = folder / f"data.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif kind == "json":
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    elif kind == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    else:
        from datasets import Dataset, DatasetDict

        data = Dataset.from_list(rows)
        (data if kind == "saved" else DatasetDict(train=data, test=data.select([2]))).save_to_disk(str(path))
    return path


def read(path, **config):
    return list(read_records(DatasetConfig(path=str(path), **config)))


def problem(path, **config):
    """The only thing that is wrong with a file, with its place."""
    [(place, error)] = [(place, record) for place, record in read(path, **config) if isinstance(record, DataError)]
    return f"{place.removeprefix(str(path.parent))[1:]}: {error}"


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "saved", "saved with splits"])
def test_every_kind_of_file_gives_the_same_records(tmp_path, kind):
    path = write(tmp_path, ROWS, kind)
    assert [record for _, record in read(path)] == ROWS
    columns = {"instruction": "question", "output": "answer"}
    renamed = [{"instruction": row["question"], "output": row["answer"], "n": row["n"]} for row in ROWS]
    assert [record for _, record in read(path, columns=columns)] == renamed


def test_places_are_lines_or_rows(tmp_path):
    places = {kind: [place for place, _ in read(write(tmp_path, ROWS, kind))] for kind in ("jsonl", "csv", "parquet")}
    assert [place.rpartition("data.")[2] for place in places["jsonl"]] == ["jsonl:1", "jsonl:2", "jsonl:3"]
    assert [place.rpartition("data.")[2] for place in places["csv"]] == ["csv:2", "csv:4", "csv:5"]
    assert [place.rpartition("data.")[2] for place in places["parquet"]] == [f"parquet: row {n}" for n in (1, 2, 3)]


# --- columns ---


def test_columns_can_change_places_and_shadow_others(tmp_path):
    path = write(tmp_path, [{"chosen": "bad", "rejected": "good", "prompt": "p", "text": "x"}], "jsonl")
    columns = {"chosen": "rejected", "rejected": "chosen", "prompt": "text"}
    assert read(path, columns=columns)[0][1] == {"chosen": "good", "rejected": "bad", "prompt": "x"}


def test_a_column_that_is_not_there(tmp_path):
    path = write(tmp_path, ROWS[:1], "csv")
    assert "output: dataset.columns takes it from 'reply', which is not there; this record has ['" in problem(
        path, columns={"output": "reply"}
    )
    with pytest.raises(DataError, match=r"dataset\.columns\.input: no record has a column 'context'"):
        read(path, columns={"instruction": "question", "output": "answer", "input": "context"})


def test_a_record_may_lack_a_renamed_column_that_is_optional(tmp_path):
    path = write(tmp_path, [{"q": "a"}, {"q": "b", "context": "c"}], "jsonl")
    records = [record for _, record in read(path, columns={"instruction": "q", "input": "context"})]
    assert records == [{"instruction": "a"}, {"instruction": "b", "input": "c"}]


def test_a_field_may_stand_under_its_own_name_where_the_renamed_column_is_missing(tmp_path):
    rows = [{"instruction": "a", "input": "x"}, {"instruction": "b", "context": "y", "input": "z"}]
    path = write(tmp_path, rows, "jsonl")
    records = [record for _, record in read(path, columns={"input": "context"})]
    assert records == [{"instruction": "a", "input": "x"}, {"instruction": "b", "input": "y"}]
    moved = [record for _, record in read(path, columns={"input": "context", "output": "input"})]
    assert moved == [{"instruction": "a", "output": "x"}, {"instruction": "b", "input": "y", "output": "z"}]


# --- CSV as others write it ---


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"instruction;output\nq;a\n",
            r"data.csv:1: the header is one column, 'instruction;output'; values are separated",
        ),
        (b"instruction\toutput\nq\ta\n", r"data.csv:1: the header is one column, 'instruction\\toutput'; values are"),
        (
            b"instruction,output\rq,a\rq,a\r",
            r"data.csv:1: not valid CSV: .*; its lines end with a carriage return alone",
        ),
    ],
)
def test_other_separators_and_line_ends_are_named(tmp_path, content, message):
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    assert re.match(message, problem(path))


def test_quotes_behind_a_blank_are_no_part_of_a_text(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('prompt,completion\n"a", "b"\n"a"," b"\na, b\n')
    assert problem(path).startswith("data.csv:2: 'completion': a blank stands before the quotes of ' \"b\"'")
    assert [record for _, record in read(path)][1:] == [{"prompt": "a", "completion": " b"}] * 2  # a blank is kept


# --- JSON in chunks ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150)
@given(st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=3), max_size=5), st.booleans(), st.integers(1, 9))
@pytest.mark.slow
def test_a_list_read_in_chunks_is_that_of_the_json_module(tmp_path_factory, rows, ascii_only, chunk):
    path = tmp_path_factory.getbasetemp() / "chunks.json"
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=ascii_only), "utf-8", "surrogatepass")
    size, json_files._CHUNK = json_files._CHUNK, chunk
    try:
        found = read(path)
    finally:
        json_files._CHUNK = size
    try:
        path.read_text("utf-8")
    except UnicodeDecodeError:  # half of a surrogate pair that was not escaped
        assert isinstance(found[-1][1], DataError)
    else:
        assert [record for _, record in found] == rows


@settings(max_examples=200)
@given(st.text('[]{}",:\\ \nau0', max_size=30), st.integers(1, 5))
def test_broken_lists_read_in_chunks_say_the_same_as_in_one(tmp_path_factory, text, chunk):
    path = tmp_path_factory.getbasetemp() / "broken.json"
    path.write_text('[{"a": 1},' + text, "utf-8")
    whole = [(place, str(record)) for place, record in read(path)]
    size, json_files._CHUNK = json_files._CHUNK, chunk
    try:
        assert [(place, str(record)) for place, record in read(path)] == whole
    finally:
        json_files._CHUNK = size


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_keys_that_are_given_twice(tmp_path, kind):
    path = tmp_path / f"data.{kind}"
    record = '{"a": 1, "b": {"c": 1, "c": 2}}'
    path.write_text(f"[{record}]" if kind == "json" else record)
    assert problem(path) == f"data.{kind}:1: not valid JSON: the key 'c' is given twice"


def test_a_number_across_chunks_is_one_number(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "_CHUNK", 3)
    path = tmp_path / "data.json"
    path.write_text("[1234567]")
    assert problem(path) == "data.json:1: a record must be a JSON object, not 1234567"


def test_a_record_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "_CHUNK", 100)
    for kind, content in {"json": '[\n{"a": "' + "x" * 5000, "jsonl": '{"a": 1}\n{"a": "' + "x" * 5000}.items():
        path = tmp_path / f"data.{kind}"
        path.write_text(content)
        *_, (place, error) = read_records(DatasetConfig(path=str(path)), longest=1000)
        assert (place, type(error)) == (f"{path}:2", LongRecordError)
        assert str(error).startswith("a record of more than")


# --- broken CSV and parquet ---


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'a,b\n1,2\n"3" x,4\n', "data.csv:3: not valid CSV: ',' expected after '\"'"),
        (b'a,b\n1,2\n3,"4\n', "data.csv:3: not valid CSV: unexpected end of data"),
        (b"a,b\n1,2,3\n", "data.csv:2: 3 values for the 2 columns ['a', 'b']"),
        (b"a,b\n\n1\n", "data.csv:3: 1 values for the 2 columns"),
        (b"a,b\n1,\xff\n", "data.csv:2: not UTF-8: byte 0xff (column 3)"),
        (b"a,b,a\n1,2,3\n", "data.csv:1: the header names the column 'a' twice"),
    ],
)
def test_broken_csv(tmp_path, content, message):
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    assert problem(path).startswith(message)


def test_csv_of_excel(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b\r\n1,"x\r\ny"\r\n')
    assert read(path) == [(f"{path}:2", {"a": "1", "b": "x\r\ny"})]


def test_broken_parquet(tmp_path):
    path = write(tmp_path, ROWS, "parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert "data.parquet: row 1: the parquet file cannot be read on:" in problem(path)
    path.write_bytes(b"")
    assert "row 1: the parquet file cannot be read on" in problem(path)
    path.write_bytes(whole[:4] + bytes(60) + whole[64:])
    assert any(isinstance(record, DataError) for _, record in read(path))


def test_nulls_that_a_table_fills_in_are_taken_out(tmp_path):
    rows = [{"m": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b", "name": "f"}], "x": None}]
    for kind in ("parquet", "saved"):
        assert read(write(tmp_path, rows, kind))[0][1] == {"m": rows[0]["m"]}


# --- the library `datasets` ---


def test_splits_of_a_saved_folder(tmp_path):
    path = write(tmp_path, ROWS, "saved with splits")
    assert [record for _, record in read(path, split="test")] == ROWS[2:]
    with pytest.raises(DataError, match=r"dataset\.split: has no split 'val'; it has train, test"):
        read(path, split="val")
    with pytest.raises(DataError, match=r"dataset\.split: this data set is not divided into splits"):
        read(write(tmp_path, ROWS, "saved"), split="train")
    with pytest.raises(DataError, match=r"dataset\.split is for data sets of the hub"):
        read(write(tmp_path, ROWS, "jsonl"), split="train")


@pytest.mark.slow
def test_a_data_set_of_the_hub(tmp_path):
    """From the cache of `datasets`, laid out as a download leaves it; in a process of its own, as the place of the
    cache is read once."""
    script = """
from pathlib import Path
import sys
from datasets import Dataset, DatasetInfo
from datasets.arrow_writer import ArrowWriter
from gpu_actor.contract.config import DatasetConfig
from gpu_actor.data.readers.record import LongRecordError
from gpu_actor.data.readers.read_records import read_records
from gpu_actor.contract.errors import DataError
folder = Path(sys.argv[1], "org___pairs", "default", "0.0.0", "abc")
folder.mkdir(parents=True)
data = Dataset.from_list([{"text": "a"}, {"text": "b"}])
writer = ArrowWriter(path=str(folder / "pairs-train.arrow"), features=data.features)
writer.write_table(data.data.table)
count, size = writer.finalize()
split = {"name": "train", "num_bytes": size, "num_examples": count, "dataset_name": "pairs"}
DatasetInfo(features=data.features, builder_name="json", dataset_name="pairs", config_name="default",
            version="0.0.0", splits={"train": split}).write_to_directory(str(folder))
print(list(read_records(DatasetConfig(path="org/pairs"))))
for config in (DatasetConfig(path="org/pairs", split="test"), DatasetConfig(path="org/none")):
    try:
        list(read_records(config))
    except DataError as error:
        print(error)
"""
    env = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=env, capture_output=True, text=True)
    found, wrong_split, missing = done.stdout.splitlines()
    assert found == "[('org/pairs: row 1', {'text': 'a'}), ('org/pairs: row 2', {'text': 'b'})]"
    assert "Unknown split" in wrong_split
    assert missing.startswith("org/none: there is no such file, and `datasets` cannot load it from the hub:")


def test_a_library_that_is_not_installed(tmp_path, monkeypatch):
    parquet, saved = write(tmp_path, ROWS, "parquet"), write(tmp_path, ROWS, "saved")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    for path in (parquet, saved, "org/data"):
        with pytest.raises(DataError, match=r"pip install loray\[data\]"):
            read(path)


def test_what_looks_like_a_hub_id():
    assert is_hub_dataset("tatsu-lab/alpaca")
    for path in ("data/alpaca.jsonl", "data/x.parquet", "alpaca", "/data/alpaca", "./data/alpaca", "a/b/c", "~/x"):
        assert not is_hub_dataset(path)


# --- memory ---

# VmHWM is the new process's own peak; ru_maxrss of a child begins at what its parent had, and would show no growth.
MEASURE = """
import sys
from gpu_actor.contract.config import DatasetConfig, TrainingConfig
from gpu_actor.data.dataset import load_dataset
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
if sys.argv[1].endswith("parquet"):
    import pyarrow.parquet
before = peak()
data = load_dataset(DatasetConfig(path=sys.argv[1], val_size=0.1), TrainingConfig(cutoff_len=8192), None, 10**6)
print(len(data.train) + len(data.val), data.train.input_ids.nbytes + data.train.labels.nbytes, peak() - before)
"""


def measure(path):
    """Samples, bytes of their arrays, and how much a new process grew while it read a file."""
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    return map(int, done.stdout.split())


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.slow
def test_memory_is_that_of_the_token_arrays(tmp_path, kind):
    path = tmp_path / f"data.{kind}"
    line = json.dumps({"input_ids": list(range(900_000, 901_000))})  # 8 kB of text
    rows = 2500
    path.write_text("\n".join([line] * rows) if kind == "jsonl" else f"[{', '.join([line] * rows)}]")
    assert path.stat().st_size > 20e6
    count, arrays, grown = measure(path)
    assert (count, arrays) == (rows, rows * 1000 * 8)
    # As Python objects the numbers alone would take 36 bytes each, 90 MB. Less than the arrays would be no measurement.
    assert 0.8 * arrays < grown < arrays + 32e6


@pytest.mark.slow
def test_a_parquet_file_of_one_row_group_is_not_held_in_memory(tmp_path):
    """As pandas and pyarrow write it: one group, which holds the whole file, a column of no use with it."""
    import pyarrow
    from pyarrow import parquet

    rows, ids = 25_000, list(range(900_000, 900_100))
    notes = [os.urandom(1000).hex() for _ in range(rows)]  # nothing that compresses well
    path = tmp_path / "data.parquet"
    parquet.write_table(pyarrow.table({"input_ids": [ids] * rows, "note": notes}), path)
    assert parquet.ParquetFile(path).num_row_groups == 1
    count, arrays, grown = measure(path)
    assert (count, arrays) == (rows, rows * 100 * 8)
    assert 0.8 * arrays < grown < arrays + 48e6  # a whole group would take more than 100 MB
