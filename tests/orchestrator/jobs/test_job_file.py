"""Job files: what they may look like, and how every mistake in them is told."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gpu_actor.contract.errors import LorayError
from orchestrator.jobs.job import JobFileError, JobSpec
from orchestrator.jobs.job_file import jobs_from_mapping, load_jobs

MINIMAL: dict[str, Any] = {
    "name": "demo",
    "base_model": "org/model",
    "dataset": {"path": "d.jsonl"},
    "output_dir": "out",
}


def jobs_of(text: str, folder: Path, name: str = "jobs.yaml") -> list[JobSpec]:
    (folder / name).write_text(text, encoding="utf-8")
    return load_jobs([folder / name])


def problems_of(text: str | bytes, folder: Path, name: str = "jobs.yaml") -> list[tuple[str, str]]:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(JobFileError) as caught:
        load_jobs([folder / name])
    assert {problem.source for problem in caught.value.problems} == {str(folder / name)}
    for line in str(caught.value).splitlines():
        assert "Input should" not in line
        assert "type=" not in line
        assert "pydantic" not in line
    return [(problem.field, problem.message) for problem in caught.value.problems]


def mistakes(folder: Path, **changes: Any) -> dict[str, str]:
    return dict(problems_of(yaml.safe_dump({**MINIMAL, **changes}), folder))


def test_relative_paths_start_at_the_file_and_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/someone")
    folder = tmp_path / "sub"
    (folder / "model").mkdir(parents=True)
    text = {**MINIMAL, "base_model": "model", "dataset": {"path": "../d.jsonl"}, "output_dir": "~/out"}
    adapters = {"lora": {"init_adapter": "start"}, "training": {"objective": "dpo", "reference_adapter": "other"}}
    [job] = jobs_of(yaml.safe_dump({**text, **adapters}), folder)
    assert job.base_model == str(folder / "model")
    assert job.dataset.path == str(tmp_path / "d.jsonl")
    assert job.output_dir == "/home/someone/out"
    assert job.lora.init_adapter == str(folder / "start")
    assert job.training.reference_adapter == str(folder / "other")


@pytest.mark.parametrize(
    ("ref", "expected"), [("./model", "{}/model"), ("/m", "/m"), ("org/model", "org/model"), ("../x", "{}/x")]
)
def test_a_base_model_is_a_path_when_it_looks_like_one(tmp_path: Path, ref: str, expected: str):
    [job] = jobs_from_mapping({**MINIMAL, "base_model": ref}, "x", tmp_path / "sub" if ref[:2] == ".." else tmp_path)
    assert job.base_model == expected.format(tmp_path)


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ("org/data", "org/data"),
        ("./org/data", "{}/org/data"),
        ("here/data", "{}/here/data"),
        ("data/x.parquet", "{}/data/x.parquet"),
        ("x", "{}/x"),
    ],
)
def test_a_data_set_is_a_hub_id_when_it_looks_like_one_and_is_no_path(tmp_path: Path, ref: str, expected: str):
    (tmp_path / "here" / "data").mkdir(parents=True)
    [job] = jobs_from_mapping({**MINIMAL, "dataset": {"path": ref}}, "x", tmp_path)
    assert job.dataset.path == expected.format(tmp_path)


@pytest.mark.parametrize(
    ("template", "expected"), [("chat.jinja", "{}/chat.jinja"), ("{{ x }}.jinja", None), ("{% if x %}", None)]
)
def test_a_chat_template_is_a_path_or_itself(tmp_path: Path, template: str, expected: str | None):
    data = {"path": "d.jsonl", "chat_template": template}
    [job] = jobs_from_mapping({**MINIMAL, "dataset": data}, "x", tmp_path)
    assert job.dataset.chat_template == (expected.format(tmp_path) if expected else template)


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("2E0", 2.0), ("1.5e-3", 1.5e-3), (".5", 0.5), ("1_0e-1", 1.0), ("010", 10.0)]
)
def test_numbers_are_those_of_yaml_1_2(tmp_path: Path, text: str, value: float):
    [job] = jobs_of(json.dumps(MINIMAL)[:-1] + f", training: {{learning_rate: {text}}}}}", tmp_path)
    assert job.training.learning_rate == value


def test_a_time_or_a_date_is_text(tmp_path: Path):
    [job] = jobs_of("{name: 2024-01-31, base_model: gpt2, dataset: {path: 1:30}, output_dir: out}", tmp_path)
    assert job.name == "2024-01-31"
    assert job.dataset.path == str(tmp_path / "1:30")


def test_json_with_tabs_is_read(tmp_path: Path):
    assert jobs_of(json.dumps(MINIMAL, indent="\t"), tmp_path, "job.json")[0].name == "demo"


def test_defaults_are_merged_field_by_field(tmp_path: Path):
    data = {
        "defaults": {**MINIMAL, "lora": {"r": 4, "target_modules": ["a"]}, "training": {"seed": 1}},
        "jobs": [{"name": "one", "lora": {"target_modules": ["b"]}}, {"name": "two", "training": {"max_steps": 5}}],
    }
    untouched = copy.deepcopy(data)
    one, two = jobs_from_mapping(data, "x", tmp_path)
    assert (one.lora.r, one.lora.target_modules, one.training.seed) == (4, ["b"], 1)
    assert (two.lora.target_modules, two.training.seed, two.training.max_steps) == (["a"], 1, 5)
    assert data == untouched


def test_anchors_and_merge_keys(tmp_path: Path):
    text = "defaults: {base_model: gpt2, dataset: {path: d.jsonl}}\njobs:\n- &a {name: a, output_dir: a}\n"
    assert [job.name for job in jobs_of(text + "- {<<: *a, name: b}\n", tmp_path)] == ["a", "b"]


def test_every_problem_of_every_file_is_reported_together(tmp_path: Path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({**MINIMAL, "lora": {"r": 0}, "training": {"seed": -1}}))
    (tmp_path / "b.yaml").write_text("x: [")
    with pytest.raises(JobFileError) as caught:
        load_jobs([tmp_path / "a.yaml", tmp_path / "b.yaml", tmp_path / "c.yaml"])
    lines = str(caught.value).splitlines()
    assert (
        lines[0] == f"{tmp_path}/a.yaml: lora.r: 0 is out of range; allowed: a whole number from 1 to 4096 (default 8)"
    )
    assert lines[1].startswith(f"{tmp_path}/a.yaml: training.seed: -1 is out of range")
    assert lines[2].startswith(f"{tmp_path}/b.yaml: line 1, column 5: ")
    assert lines[3].startswith(f"{tmp_path}/c.yaml: cannot be read: No such file")
    assert len(lines) == 4


def test_missing_fields_are_named(tmp_path: Path):
    assert [field for field, _ in problems_of("{}", tmp_path)] == ["name", "base_model", "dataset.path", "output_dir"]


@pytest.mark.parametrize(
    ("section", "name", "meant"),
    [
        ("training", "learning_rat", "training.learning_rate"),
        ("training", "r", "lora.r"),
        ("training", "lr", "training.learning_rate"),
        ("lora", "alpha", "lora.lora_alpha"),
        ("lora", "Target-Modules", "lora.target_modules"),
        ("lora", "base_model", "base_model"),
        ("queue", "max_retry", "queue.max_retries"),
        ("queue", "max_steps", "training.max_steps"),
        ("", "r", "lora.r"),
        ("", "basemodel", "base_model"),
        ("", "trainig", "training"),
        ("", "gird", "grid"),
        ("", "epochs", "training.num_train_epochs"),
        ("", "lora.rr", "lora.r"),
    ],
)
def test_an_unknown_field_is_refused_with_the_one_that_was_meant(tmp_path: Path, section: str, name: str, meant: str):
    changes = {section: {name: 1}} if section else {name: 1}
    field = f"{section}.{name}" if section else name
    assert mistakes(tmp_path, **changes) == {field: f"is not a field here; did you mean {meant}?"}


def test_a_field_like_no_other_gets_the_list(tmp_path: Path):
    found = mistakes(tmp_path, queue={"zzzzzz": 1}, **{"training.seed": 3})
    assert found["queue.zzzzzz"] == "is not a field here; the fields here are priority, max_retries"
    assert found["training.seed"] == "is not a field here; write `seed` inside the mapping `training`"


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        (
            "training",
            "learning_rate",
            "fast",
            "'fast' is not a number; allowed: a number above 0, up to 10 (default 5e-05)",
        ),
        ("training", "learning_rate", "1e-4 ", "'1e-4 ' is text, not a number; take the quotes away; allowed: "),
        ("training", "learning_rate", 11, "11 is out of range; allowed: a number above 0, up to 10"),
        ("training", "learning_rate", math.inf, "inf is not a finite number; allowed: "),
        ("training", "max_steps", 0, "0 is out of range; allowed: a whole number from 1 to 1000000000, or null"),
        ("training", "seed", True, "true is not a whole number; allowed: a whole number from 0 to 4294967295"),
        ("training", "shuffle", 1, "1 is not true or false; allowed: true or false (default true)"),
        ("training", "lr_scheduler_type", "cosin", "'cosin' is not allowed; allowed: one of constant, "),
        ("lora", "r", 8.5, "8.5 is not a whole number; allowed: a whole number from 1 to 4096 (default 8)"),
        ("lora", "lora_dropout", 1, "1 is out of range; allowed: a number from 0, below 1"),
        ("lora", "target_modules", 5, "5 is not text or a list; allowed: text or a list of text"),
        ("lora", "target_modules", [], "[] must name at least one module"),
        ("lora", "target_modules", "(", "'(' is not a regular expression: "),
        (
            "lora",
            "init_lora_weights",
            "olora",
            "'olora' is no start that Loray has; allowed: true, gaussian, orthogonal",
        ),
        ("lora", "init_lora_weights", 3, "3 is not true or false or text"),
        ("lora", "rank_pattern", 4, "4 is not a mapping of fields; allowed: a mapping of names to whole numbers"),
        ("lora", "rank_pattern", None, "null is not a mapping of fields; allowed: a mapping of names to whole"),
        ("lora", "layers_to_transform", [], "[] must be layer numbers, from 0 up"),
        ("lora", "modules_to_save", ["lm_head"], "is PEFT's word for training whole modules beside the adapter, which"),
        ("lora", "use_qalora", True, "is PEFT's word for QALoRA (updates grouped for quantisation), which Loray does"),
        ("training", "loraplus_lr_ratio", 0.5, "0.5 is out of range; allowed: a number from 1"),
        ("lora", "init_adapter", "", "'' is not allowed; allowed: text that is not empty, or null"),
        ("dataset", "val_size", 1.5, "1.5 must be a share below 1 or a whole number"),
        ("dataset", "val_size", -1, "-1 is out of range; allowed: a number from 0 to 1000000000 (default 0.0)"),
        ("dataset", "columns", {"instuction": "q"}, "'instuction' is no field of a data format; did you mean instruct"),
        ("dataset", "columns", {"text": 5}, "text: '5' is no name of a column"),
        ("dataset", "columns", ["text"], "['text'] is not a mapping from fields to columns"),
        ("dataset", "columns", None, "null is not a mapping from fields to columns"),
        ("dataset", "chat_template", "", "'' is not allowed; allowed: text that is not empty, or null"),
        ("dataset", "format", "sharegtp", "'sharegtp' is not allowed; allowed: one of auto, alpaca, sharegpt, "),
        ("training", "objective", "ppo", "'ppo' is not allowed; allowed: one of sft, dpo, cpo, orpo, simpo, kto"),
        ("dataset", "path", None, "null is not text; allowed: text that is not empty"),
        ("", "lora", 5, "5 is not a mapping of fields; allowed: a mapping of fields (peft_type, r, "),
        ("", "training", None, "is empty; give it fields (objective, "),
        ("", "name", 123, "123 is not text; allowed: a name"),
        ("", "name", "a b", "'a b' is not allowed; allowed: a name, unique among live jobs: letters, digits"),
        ("", "base_model", "a/b/c", "'a/b/c' is neither a folder that exists nor a hub id"),
        ("", "output_dir", "", "'' is not allowed; allowed: text that is not empty"),
    ],
)
def test_an_impossible_value_is_refused_in_words(tmp_path: Path, section: str, name: str, value: Any, message: str):
    changes = {section: {"path": "d.jsonl", name: value} if section == "dataset" else {name: value}}
    [(field, words)] = mistakes(tmp_path, **(changes if section else {name: value})).items()
    assert field == (f"{section}.{name}" if section else name)
    assert words.startswith(message)


def test_only_the_wrong_item_of_a_list_is_told(tmp_path: Path):
    found = mistakes(tmp_path, lora={"target_modules": ["q", 1]})
    assert list(found) == ["lora.target_modules[1]"]


def test_mistakes_are_told_where_they_were_written(tmp_path: Path):
    text = """
defaults: {base_model: gpt2, training: {seed: x, max_steps: y}}
jobs:
- {name: a, dataset: {path: d}, output_dir: a, training: {max_steps: z}}
- {name: b, dataset: {path: d}, lora: {r: 0}}
- 5
nam: x
"""
    assert [field for field, _ in problems_of(text, tmp_path)] == [
        "nam",
        "jobs[2]",
        "jobs[0].training.max_steps",
        "defaults.training.seed",
        "jobs[1].lora.r",
        "defaults.training.max_steps",
        "jobs[1].output_dir",
    ]


@pytest.mark.parametrize("text", ["defaults: {}", "jobs: []", "jobs: {a: 1}", "jobs: null"])
def test_the_list_of_jobs_must_hold_some(tmp_path: Path, text: str):
    [(field, message)] = problems_of(text, tmp_path)
    assert field == "jobs"
    assert "give at least one job" in message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ["name", "base_model", "dataset", "lora", "grid", "jobs", "defaults", "path", "r", "x", "lora.r"]
)
DOCUMENTS = st.recursive(
    JSON | st.just("org/model"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)


@given(DOCUMENTS)
def test_no_document_raises_anything_but_our_errors(data: Any):
    with contextlib.suppress(LorayError):
        assert all(isinstance(job, JobSpec) for job in jobs_from_mapping(data, "x", Path("/nowhere")))


def test_the_jobs_of_a_halved_grid_are_one_group_and_patience_needs_evaluations(tmp_path):
    path = tmp_path / "grid.yaml"
    text = "name: g\nbase_model: org/m\ndataset: {path: d.jsonl}\noutput_dir: out\ngrid: {lora.r: [4, 8]}\n"
    path.write_text(text + "early_stop: {halving_steps: 10}\n")
    assert {job.early_stop.group for job in load_jobs([path])} == {"g"}
    path.write_text(text)
    assert {job.early_stop.group for job in load_jobs([path])} == {None}
    path.write_text(text + "early_stop: {patience: 2}\n")
    with pytest.raises(JobFileError, match="val_size"):
        load_jobs([path])


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("{halving_steps: 10}", "compares the jobs of a grid, and this job is in none"),
        ("{min_delta: 0.1}", "min_delta 0.1 does nothing without early_stop.patience"),
        ("{halving_keep: 0.25}", "halving_keep does nothing without early_stop.halving_steps"),
        ("{group: g}", "group does nothing without early_stop.halving_steps"),
        ("{halving_steps: 10, group: g}\ntraining: {logging_steps: 50}", "set training.logging_steps \\(now 50\\)"),
        ("{halving_steps: 10, group: g}\ntraining: {logging_steps: 50}", "with dataset.val_size"),
        ("{}\ntraining: {eval_steps: 5}", r"training\.eval_steps \(5\) does nothing without samples to evaluate on"),
    ],
)
def test_a_rule_of_early_stop_that_could_never_act_is_refused(tmp_path, rules, words):
    path = tmp_path / "job.yaml"
    path.write_text(f"name: g\nbase_model: org/m\ndataset: {{path: d.jsonl}}\noutput_dir: out\nearly_stop: {rules}\n")
    with pytest.raises(JobFileError, match=words):
        load_jobs([path])


def test_a_halved_grid_may_log_up_to_its_first_rung_or_evaluate(tmp_path):
    path = tmp_path / "grid.yaml"
    text = "name: g\nbase_model: org/m\noutput_dir: out\nearly_stop: {halving_steps: 10}\ngrid: {lora.r: [4, 8]}\n"
    for rest in (
        "training: {logging_steps: 10}\ndataset: {path: d.jsonl}\n",
        "training: {logging_steps: 50, eval_steps: 10}\ndataset: {path: d.jsonl, val_size: 0.1}\n",
    ):
        path.write_text(text + rest)
        assert len(load_jobs([path])) == 2


def test_options_that_do_something_are_read_and_written_out():
    early_stop = {"halving_steps": 5, "halving_keep": 0.25, "patience": 2, "min_delta": 0.1}
    fields = {"early_stop": early_stop, "dataset": {"path": "d.jsonl", "val_size": 2}, "training": {"eval_steps": 5}}
    jobs = jobs_from_mapping({**MINIMAL, **fields, "grid": {"lora.r": [4, 8]}}, "x", Path("/nowhere"))
    assert [job.early_stop.group for job in jobs] == [MINIMAL["name"]] * 2
    for job in (*jobs, *jobs_from_mapping(MINIMAL, "x", Path("/nowhere"))):
        assert JobSpec.model_validate(yaml.safe_load(job.to_yaml())) == job


def test_patience_that_no_evaluation_would_serve_is_refused():
    dataset, training = {"path": "d.jsonl", "val_size": 2}, {"eval_steps": 50, "max_steps": 20}
    fields = {**MINIMAL, "early_stop": {"patience": 2}, "dataset": dataset, "training": training}
    with pytest.raises(JobFileError, match=r"eval_steps \(50\) exceeds training\.max_steps \(20\)"):
        jobs_from_mapping(fields, "x", Path("/nowhere"))
