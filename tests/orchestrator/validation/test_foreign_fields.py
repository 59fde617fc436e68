"""Names that other trainers give to fields: each leads to a field that is there, or says why there is none."""

import re

import pytest
from pydantic import ValidationError

from orchestrator.cluster.cluster_config import ClusterConfig
from orchestrator.jobs.job import JobSpec
from orchestrator.validation.field_index import dotted, field_index
from orchestrator.validation.foreign_fields import FOREIGN_FIELDS, foreign_field
from orchestrator.validation.problems import explain

JOB = {dotted(path) for path in field_index(JobSpec).nodes}
CLUSTER = {dotted(path) for path in field_index(ClusterConfig).nodes}


def test_every_name_leads_to_a_field_that_is_there_or_says_why_there_is_none():
    for name, field in FOREIGN_FIELDS.items():
        assert field is foreign_field(name.upper().replace("_", "-"))
        assert field.job in {"", *JOB}, name
        assert field.cluster in {"", *CLUSTER}, name
        assert field.job or field.cluster or field.note, name
        named = re.findall(r"\b(?:lora|training|dataset|early_stop|queue)\.\w+", field.note)
        assert set(named) <= JOB, name


def test_no_name_of_theirs_hides_a_field_of_ours():
    """A name that a job has is found before the table is asked, so that it would never be read."""
    assert not set(FOREIGN_FIELDS) & {path.rpartition(".")[2] for path in JOB}


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("pref_beta", "did you mean training.beta?"),
        ("lora_target_linear", "did you mean lora.target_modules? (all-linear, which is the default)"),
        ("load_in_4bit", "it is actors[].quantization in the cluster file (nf4 for 4 bits, int8 for 8 bits)"),
        ("bf16", "it is actors[].dtype in the cluster file (bfloat16, float16 or float32)"),
        ("gradient_checkpointing", "it is actors[].gradient_checkpointing in the cluster file"),
        ("val_set_size", "did you mean dataset.val_size?"),
        ("packing", "samples are always packed without padding, each attending to itself alone; leave it out"),
    ],
)
@pytest.mark.parametrize("section", [None, "training"])
def test_a_job_with_a_foreign_field_is_told_the_way(field, message, section):
    job = {"name": "a", "base_model": "a/b", "dataset": {"path": "a.jsonl"}, "output_dir": "/o", "training": {}}
    (job[section] if section else job)[field] = 1
    with pytest.raises(ValidationError) as refused:
        JobSpec.model_validate(job)
    path = (section, field) if section else (field,)
    assert explain(refused.value, job, JobSpec, "job") == [(path, f"is not a field here; {message}")]


def test_a_cluster_with_a_foreign_field_is_told_the_way():
    data = {"actors": [{"load_in_8bit": True, "learning_rate": 1e-4, "lr": 1e-4}]}
    with pytest.raises(ValidationError) as refused:
        ClusterConfig.model_validate(data)
    explained = {path[-1]: message for path, message in explain(refused.value, data, ClusterConfig, "cluster")}
    assert "did you mean actors[].quantization? (nf4" in explained["load_in_8bit"]
    assert "it is training.learning_rate in the job file" in explained["lr"]
