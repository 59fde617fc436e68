"""Documents from files that nobody checked: plain values come out, or a refusal in one line."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gpu_actor.contract.errors import LorayError
from orchestrator.validation.problems import ProblemsError
from orchestrator.validation.yaml_file import read_document, write_document


def refusal(text: str | bytes, folder: Path, name: str = "file.yaml") -> list[str]:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ProblemsError) as caught:
        read_document(folder / name)
    assert {(problem.source, problem.field) for problem in caught.value.problems} == {(str(folder / name), "")}
    return [problem.message for problem in caught.value.problems]


def test_plain_values(tmp_path: Path):
    text = "[1e-4, 2E5, 010, 0x1F, 0o17, 1_000, .5, 5., -.inf, 1:30, 2024-01-01, yes, off, ~, null, '1', 1e5x]"
    (tmp_path / "a.yaml").write_text(text)
    assert read_document(tmp_path / "a.yaml")[0] == [
        *(0.0001, 200000.0, 10, 31, 15, 1000, 0.5, 5.0, float("-inf"), "1:30", "2024-01-01"),
        *(True, False, None, None, "1", "1e5x"),
    ]  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_encodings_that_editors_write(tmp_path: Path, encoding: str):
    (tmp_path / "a.yaml").write_bytes("a: \u00e9\r\nb: 1\r\n".encode(encoding))
    assert read_document(tmp_path / "a.yaml")[0] == {"a": "\u00e9", "b": 1}


TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["1e5", "010", "0o1", "1:30", "yes", "", "~"]
)


@given(st.recursive(TEXTS | st.none() | st.booleans() | st.floats(allow_nan=False), st.lists))
def test_what_is_written_is_read_back_by_us_and_by_others(tmp_path_factory: pytest.TempPathFactory, value: Any):
    file = tmp_path_factory.getbasetemp() / "written.yaml"
    file.write_text(write_document({"a": value}), encoding="utf-8", newline="")
    assert read_document(file) == ({"a": value}, [])
    assert yaml.safe_load(file.read_text(encoding="utf-8")) == {"a": value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("a: 1\n---\nb: 2\n", "line 2: a second document starts"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("a:\n\t- b", "line 2, column 1: found character '\\t'"),
        ("a: !!python/object/apply:os.system [x]", "line 1, column 4: the tag '!!python/object/apply:os.system'"),
        ("a: !!int x", "line 1, column 4: 'x' cannot be read as a whole number"),
        ("a: " + "9" * 5000, "line 1, column 4: '99999"),
        ("a: &a [*a]", "line 1, column 8: an alias stands inside its own anchor"),
        ("[" * 5000, "line 1, column 41: more than 100,000 values"),
        ("a: \x01", "line 1, column 4: the character U+0001 is not allowed"),
        (b"a: 1\nb: \xff", "line 2: is not UTF-8 text"),
        (b"#" * (2**20 + 1), "is larger than 1 MiB"),
        ('a: "\\UFFFFFFFF"', "holds an escape"),
        ("{[1]: 2}", "line 1, column 2: found unhashable key"),
    ],
)
def test_what_is_no_document_is_refused_in_one_line(tmp_path: Path, text: str | bytes, message: str):
    [words] = refusal(text, tmp_path)
    assert words.startswith(message)
    assert "\n" not in words


@pytest.mark.parametrize("join", ["[{}]", "{{<<: [{}]}}"])
def test_an_alias_bomb_is_refused_before_it_goes_off(tmp_path: Path, join: str):
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} " + join.format(", ".join([f"*a{n - 1}"] * 10)) for n in range(1, 12)]
    assert "more than 100,000 values" in refusal("\n".join(lines), tmp_path)[0]


def test_aliases_cannot_nest_without_end(tmp_path: Path):
    lines = ["a0: &a0 1"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 100)]
    assert "more than 40 levels" in refusal("\n".join(lines), tmp_path)[0]


def test_a_key_given_twice_is_refused_with_its_lines(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("lora:\n  r: 4\n  r: 8\nqueue: {priority: 1, priority: 101}\n")
    value, problems = read_document(tmp_path / "a.yaml")
    assert [problem.message for problem in problems] == [
        "line 3: the key 'r' is given twice (first on line 2); keep one",
        "line 4: the key 'priority' is given twice (first on line 4); keep one",
    ]
    assert value == {"lora": {"r": 8}, "queue": {"priority": 101}}, "so that the rest can be checked as well"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,}', "line 1, column 9: "),
        ("[" * 100_000, "more than 100,000 values"),
        ("[" * 50 + "]" * 50, "more than 100,000 values"),
        ('{"a": ' + "9" * 5000 + "}", "'9999"),
        ("", "is empty"),
    ],
)
def test_json_has_the_same_limits(tmp_path: Path, text: str, message: str):
    assert refusal(text, tmp_path, "job.json")[0].startswith(message)


@given(st.binary(max_size=60) | st.text("{}[]:,-&*!|>'\"%@#? \nab1e.<~\\U", max_size=40).map(str.encode))
def test_no_bytes_raise_anything_but_our_errors(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    for name in ("garbage.yaml", "garbage.json"):
        file = tmp_path_factory.getbasetemp() / name
        file.write_bytes(data)
        with contextlib.suppress(LorayError):
            read_document(file)
