"""The cluster file: its settings, their defaults, and mistakes reported as in job files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import make_url

from gpu_actor.contract.errors import LorayError
from orchestrator.cluster.cluster_config import ClusterConfig, ClusterFileError, parse_size
from orchestrator.cluster.cluster_file import load_cluster_config
from support.repository import ROOT


def load(text: str, folder: Path) -> ClusterConfig:
    (folder / "cluster.yaml").write_text(text)
    return load_cluster_config(folder / "cluster.yaml")


def mistakes(text: str, folder: Path) -> dict[str, str]:
    with pytest.raises(ClusterFileError) as caught:
        load(text, folder)
    assert "Input should" not in str(caught.value)
    assert isinstance(caught.value, LorayError)
    assert {problem.source for problem in caught.value.problems} == {str(folder / "cluster.yaml")}
    return {problem.field: problem.message for problem in caught.value.problems}


def test_without_a_file_everything_has_a_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LORAY_HOME", str(tmp_path / "h"))
    config = load_cluster_config(None)
    assert config.storage == str(tmp_path / "h")
    assert make_url(config.database_url).database == str(tmp_path / "h" / "loray.db")
    assert (config.actors, config.scheduler.policy, config.allowed_roots) == ("auto", "cosrpt", None)
    assert config.trust_remote_code is False


def test_the_example_holds_every_setting():
    example = load_cluster_config(ROOT / "configs" / "cluster.yaml")
    assert example.model_fields_set == set(ClusterConfig.model_fields)
    assert isinstance(example.actors, list)
    assert example.actors[0].model_fields_set == set(type(example.actors[0]).model_fields)
    assert example.scheduler.model_fields_set == set(type(example.scheduler).model_fields)
    assert example.actors[0].memory_limit == 4 * 2**30
    assert example.actors[0].resolved_device == "cpu"


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/someone")
    (tmp_path / "model").mkdir()
    text = """
storage: state
allowed_roots: [data, ~/x, /srv]
actors: [{base_model: model}, {base_model: ./other}, {base_model: org/name, num_gpus: 1}]
"""
    config = load(text, tmp_path)
    assert config.storage == f"{tmp_path}/state"
    assert config.allowed_roots == [f"{tmp_path}/data", "/home/someone/x", "/srv"]
    assert isinstance(config.actors, list)
    assert [actor.base_model for actor in config.actors] == [f"{tmp_path}/model", f"{tmp_path}/other", "org/name"]
    assert config.actors[2].resolved_device == "cuda"


def test_a_config_survives_plain_values(tmp_path: Path):
    config = load("actors: [{memory_limit: 8GiB}]\nscheduler: {tick_seconds: 1}", tmp_path)
    assert ClusterConfig(**config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * 2**30),
        ("500MB", 500 * 10**6),
        ("1.5 KiB", 1536),
        ("7", 7),
        ("3B", 3),
        ("2kB", 2000),
        ("1TiB", 2**40),
        ("1TB", 10**12),
        ("4MiB", 4 * 2**20),
        ("9GB", 9 * 10**9),
    ],
)
def test_sizes(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "8G", "8gib", "GiB", "-1GB", "1e9", "8 G iB", "9" * 30 + "GB", "nanGB", "٣GB"])
def test_what_is_no_size(text: str):
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@given(st.text())
def test_any_text_is_a_size_or_refused(text: str):
    try:
        assert parse_size(text) > 0
    except ValueError as error:
        assert str(error).startswith("is not a size")  # noqa: PT017


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("storag: x", "storag", "did you mean storage?"),
        ("tick_seconds: 1", "tick_seconds", "did you mean scheduler.tick_seconds?"),
        ("memory_limit: 1", "memory_limit", "did you mean actors[].memory_limit?"),
        ("gpus: 1", "gpus", "did you mean actors[].num_gpus?"),
        (
            "scheduler: {policy: lifo}",
            "scheduler.policy",
            "'lifo' is not allowed; allowed: fifo, fifo-4, fifo-memory, srpt, cosrpt",
        ),
        ("scheduler: {tick_seconds: 0}", "scheduler.tick_seconds", "0 is out of range; allowed: a number above 0, up"),
        ("actors: 5", "actors", "5 is not text or a list; allowed: auto or a list of mappings"),
        ("actors: many", "actors", "'many' is not allowed; allowed: auto or"),
        ("actors: []", "actors", "[] names no actor"),
        ("actors: [{}, {device: gpu}]", "actors[1].device", "'gpu' is not allowed; allowed: `cpu` or `cuda`"),
        ("actors: [{device: cuda}]", "actors[0]", "device cuda does not go with num_gpus 0"),
        (
            "actors: [{cpu_threads: 4, num_gpus: 1}]",
            "actors[0]",
            "cpu_threads 4 does nothing for an actor with num_gpus",
        ),
        (
            "actors: [{device: cuda:1, num_gpus: 1}]",
            "actors[0]",
            "device cuda:1 is never there: Ray gives an actor its",
        ),
        ("actors: [{device: cpu, num_gpus: 1}]", "actors[0]", "device cpu does not go with num_gpus 1"),
        ("actors: [{memory_limit: 8G}]", "actors[0].memory_limit", "'8G' is not a size; allowed: bytes, or"),
        ("actors: [{memory_limit: 0GB}]", "actors[0].memory_limit", "'0GB' is not a size"),
        (
            "actors: [{memory_limit: -1}]",
            "actors[0].memory_limit",
            "-1 is out of range; allowed: a whole number above 0",
        ),
        ("actors: [{memory_limit: 1.5}]", "actors[0].memory_limit", "1.5 is not a whole number"),
        ("actors: [{dtype: int8}]", "actors[0].dtype", "'int8' is not allowed; allowed: one of float32, "),
        ("actors: [{num_gpus: 2}]", "actors[0].num_gpus", "2 is out of range; allowed: a number from 0 to 1"),
        ("actors: [x]", "actors[0]", "'x' is not a mapping of fields"),
        ("actors: [{cpu_thread: 2}]", "actors[0].cpu_thread", "did you mean actors[0].cpu_threads?"),
        ("database: mysql://x/y", "database", "is not a URL of a database; allowed: sqlite"),
        ("database: 'sqlite://'", "database", "is not a URL of a database"),
        ("allowed_roots: x", "allowed_roots", "'x' is not a list; allowed: a list of text"),
        ("trust_remote_code: 1", "trust_remote_code", "1 is not true or false"),
        ("[1]", "", "[1] is not a cluster file"),
        ("storage: [", "", "line 1, column 11: "),
        ("", "", "is empty"),
        ("storage: a\nstorage: b", "", "line 2: the key 'storage' is given twice"),
    ],
)
def test_mistakes_are_told_in_words(tmp_path: Path, text: str, field: str, words: str):
    found = mistakes(text, tmp_path)
    assert list(found) == [field]
    assert words in found[field]


def test_all_mistakes_are_told_together_and_no_password(tmp_path: Path):
    text = "storag: x\ndatabase: oracle://me:secret@host/x\nactors: [{dtype: x}, {cpu_threads: 0}]"
    found = mistakes(text, tmp_path)
    assert set(found) == {"storag", "database", "actors[0].dtype", "actors[1].cpu_threads"}
    assert "secret" not in str(found)
