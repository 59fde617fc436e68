"""The JSON schema of a job file says the same as the loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from orchestrator.jobs.job import JobFileError
from orchestrator.jobs.job_file import jobs_from_mapping, load_jobs
from orchestrator.jobs.schema import job_schema
from orchestrator.validation.yaml_file import read_document
from support.repository import ROOT

MINIMAL: dict[str, Any] = {
    "name": "demo",
    "base_model": "org/model",
    "dataset": {"path": "d.jsonl"},
    "output_dir": "out",
}


def test_the_schema_accepts_the_examples_and_minimal_jobs():
    schema = job_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    files = sorted((ROOT / "configs" / "jobs").glob("*.yaml"))
    assert files
    for file in files:
        assert load_jobs([file])
        validator.validate(read_document(file)[0])
    validator.validate({**MINIMAL, "grid": {"lora.r": [1], "lora.target_modules": ["all-linear", ["q"]]}})


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"lora": {"r": 0}}, ["lora", "r"]),
        ({"lora": {"rr": 1}}, ["lora"]),
        ({"dataset": {"path": "x", "val_size": -1}}, ["dataset", "val_size"]),
        ({"training": {"lr_scheduler_type": "cosin"}}, ["training", "lr_scheduler_type"]),
        ({"grid": {"lora.rr": [1]}}, ["grid"]),
        ({"grid": {"lora.r": [0]}}, ["grid", "lora.r", 0]),
        ({"grid": {"name": ["a"]}}, ["grid"]),
        ({"name": "a b"}, ["name"]),
        ({"jobs": []}, ["jobs"]),
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(changes: dict[str, Any], where: list[Any]):
    errors = list(jsonschema.Draft202012Validator(job_schema()).iter_errors({**MINIMAL, **changes}))
    assert where in [list(error.absolute_path) for error in errors]
    with pytest.raises(JobFileError):
        jobs_from_mapping({**MINIMAL, **changes}, "x", Path("/nowhere"))


def test_every_field_of_the_schema_has_its_words_and_default():
    def look(section: dict[str, Any], path: str) -> None:
        for name, node in section["properties"].items():
            assert node.get("description") or "$ref" in node, path + name
            if "properties" in node:
                look(node, f"{path}{name}.")
            elif "$ref" not in node:
                assert "default" in node or name in section["required"], path + name

    look(job_schema()["$defs"]["Job"], "")
    assert job_schema()["$defs"]["Job"]["required"] == ["name", "base_model", "dataset", "output_dir"]
    partial = job_schema()["$defs"]["PartialJob"]
    for data in (partial["properties"]["dataset"], partial["properties"]["dataset"]["properties"]["mix"]):
        assert data.pop("items")["required"] == ["path"]  # lists are not merged with the defaults
    assert "required" not in json.dumps(partial)
