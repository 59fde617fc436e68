"""What a job is: its fields survive every journey, and its states go only where they may."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gpu_actor.contract.config import AdapterSpec, DatasetConfig, TrainingConfig
from gpu_actor.contract.errors import IllegalTransitionError, InvalidJobError, LorayError
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.paths.locations import is_hub_id, loray_home, resolve_base_model
from orchestrator.jobs.job import JobFileError, JobSpec, QueueConfig
from orchestrator.jobs.job_file import load_jobs
from orchestrator.jobs.states import TERMINAL, JobState, check_transition
from orchestrator.validation.problems import Problem

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)
# Any text but what no file name can hold; "/" last, so that the path is in its shortest form.
FILES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
PATHS = FILES.filter(lambda text: text not in (".", "..")).map(lambda text: f"/nowhere/{text}")
POSITIVE = st.floats(min_value=1e-12, max_value=10, exclude_min=True)
SPECS = st.builds(
    JobSpec,
    name=NAMES,
    base_model=PATHS | st.just("HuggingFaceTB/SmolLM2-135M-Instruct"),
    dataset=st.builds(
        DatasetConfig,
        path=PATHS | st.just("org/data"),
        val_size=st.floats(0, 0.99) | st.integers(0, 1000),
        columns=st.dictionaries(st.sampled_from(["text", "chosen"]), st.text(min_size=1, max_size=5)),
        chat_template=st.none() | st.just("{% for m in messages %}\n{{ m.content }}{% endfor %}") | st.just("/t.jinja"),
    ),
    lora=st.builds(
        LoraConfig,
        r=st.integers(1, 4096),
        lora_alpha=POSITIVE,
        target_modules=st.lists(st.text("abc_.", min_size=1), min_size=1, unique=True) | st.just("all-linear"),
        use_rslora=st.booleans(),
        init_adapter=st.none() | PATHS,
    ),
    training=st.builds(
        TrainingConfig,
        learning_rate=POSITIVE,
        max_steps=st.none() | st.integers(1000, 10**9),
        warmup_steps=st.integers(0, 1000),
        lr_scheduler_type=st.sampled_from(["linear", "cosine", "constant"]),
        seed=st.integers(0, 2**32 - 1),
    ),
    queue=st.builds(QueueConfig, priority=st.integers(-100, 100), max_retries=st.integers(0, 100)),
    output_dir=PATHS,
)
MINIMAL = {"name": "a", "base_model": "gpt2", "dataset": {"path": "/d.jsonl"}, "output_dir": "/out"}


@given(SPECS)
def test_a_job_survives_plain_values_and_its_own_file(tmp_path_factory: pytest.TempPathFactory, spec: JobSpec):
    assert JobSpec(**spec.model_dump(mode="json")) == spec
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    file = tmp_path_factory.getbasetemp() / "job.yaml"
    file.write_text(spec.to_yaml(), encoding="utf-8")
    assert load_jobs([file]) == [spec]


@pytest.mark.parametrize("place", [("output_dir",), ("base_model",), ("dataset", "path"), ("lora", "init_adapter")])
def test_a_nul_in_a_path_is_refused_by_name(place: tuple[str, ...]):
    fields: dict[str, Any] = {**MINIMAL, "dataset": {"path": "/d.jsonl"}, "lora": {}}
    holder = fields if len(place) == 1 else fields[place[0]]
    holder[place[-1]] = "/out\0"
    with pytest.raises(ValidationError) as error:
        JobSpec.model_validate(fields)
    (first,) = error.value.errors()
    assert first["loc"] == place
    assert "holds a NUL character" in first["msg"]


def test_the_actor_gets_the_job_without_what_is_none_of_its_business():
    spec = JobSpec(**MINIMAL, lora={"r": 16}, queue={"priority": 3})
    adapter = spec.to_adapter_spec("job-1")
    assert adapter.model_dump() == {"job_id": "job-1", **spec.model_dump(exclude={"queue", "report_to"})}
    assert AdapterSpec(**adapter.model_dump(mode="json")) == adapter


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "a\n", "ä", "a" * 129, "../a"])
def test_names_that_could_be_something_else_are_refused(name: str):
    with pytest.raises(ValidationError):
        JobSpec(**{**MINIMAL, "name": name})


@pytest.mark.parametrize("ref", ["gpt2", "org/name", "HuggingFaceTB/SmolLM2-135M-Instruct", "a.b/c_d-1"])
def test_hub_ids(ref: str):
    assert is_hub_id(ref)


@pytest.mark.parametrize("ref", ["", "a/b/c", "a b", "../a", "a/..", "a..b", "/a", "~/a", "a/", "-a", "a\0", "é/a"])
def test_what_is_no_hub_id(ref: str):
    assert not is_hub_id(ref)


def test_a_hub_id_in_the_model_store_leads_to_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LORAY_HOME", str(tmp_path))
    folder = tmp_path / "models" / "org" / "name"
    folder.mkdir(parents=True)
    assert resolve_base_model("org/name") == "org/name", "a folder without config.json is no model"
    (folder / "config.json").write_text("{}")
    assert resolve_base_model("org/name") == str(folder)
    assert resolve_base_model("org") == "org"
    assert resolve_base_model("/org/name") == "/org/name"
    assert loray_home() == tmp_path


def test_a_hub_id_cannot_climb_out_of_the_model_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LORAY_HOME", str(tmp_path / "home"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LorayError, match=r"'\.\.'"):
        resolve_base_model("a/../../..")


LEGAL = {
    ("QUEUED", "RUNNING"), ("QUEUED", "PAUSED"), ("QUEUED", "CANCELLED"), ("QUEUED", "FAILED"),
    ("RUNNING", "SUCCEEDED"), ("RUNNING", "FAILED"), ("RUNNING", "CANCELLED"), ("RUNNING", "QUEUED"),
    ("RUNNING", "PAUSED"), ("PAUSED", "QUEUED"), ("PAUSED", "CANCELLED"), ("FAILED", "QUEUED"),
    ("CANCELLED", "QUEUED"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new"), itertools.product(JobState, JobState))
def test_every_change_of_state(old: JobState, new: JobState):
    if (old.value, new.value) in LEGAL:
        check_transition(old, new)
        return
    with pytest.raises(IllegalTransitionError) as caught:
        check_transition(old, new)
    assert f"is {old.value} cannot become {new.value}" in str(caught.value)
    assert all(after in str(caught.value) for before, after in LEGAL if before == old.value)


def test_terminal_states_are_those_that_no_actor_leaves():
    assert {state.value for state in TERMINAL} == {"SUCCEEDED", "FAILED", "CANCELLED"}


def test_a_job_file_error_lists_its_problems_and_survives_pickling():
    error = JobFileError([Problem("a.yaml", "lora.r", "is bad"), Problem("job 3", "", "is worse")])
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "a.yaml: lora.r: is bad\njob 3: is worse"
    assert again.problems == error.problems
    assert isinstance(error, InvalidJobError)
    assert isinstance(error, ValueError)
