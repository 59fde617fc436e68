"""A list of data sets in a job file: read, checked, staged and sized entry by entry, and problems name the entry."""

import json

import jsonschema
import pytest

from orchestrator.jobs.data_checks import first_records_remark
from orchestrator.jobs.job import JobFileError
from orchestrator.jobs.job_file import jobs_from_mapping, load_jobs
from orchestrator.jobs.preflight import check_files
from orchestrator.jobs.schema import job_schema
from orchestrator.jobs.staging import stage_jobs
from orchestrator.knowledge.data_size import guess_size

MINIMAL = {"name": "demo", "base_model": "org/model", "output_dir": "out"}


def document(*entries):
    return {**MINIMAL, "dataset": list(entries)}


def rows(path, count, length):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps({"input_ids": [1] * length, "labels": [1] * length}) + "\n" for _ in range(count))
    )


def test_a_list_is_a_mix_with_its_paths_made_absolute(tmp_path):
    text = document(
        {"path": "a.jsonl", "weight": 2},
        {"path": "org/data", "split": "train"},
        {"path": "b.csv", "chat_template": "chat.jinja", "val_size": 0.1},
    )
    [job] = jobs_from_mapping(text, "x", tmp_path)
    assert [(source.path, source.weight) for source in job.dataset.sources] == [
        (str(tmp_path / "a.jsonl"), 2.0),
        ("org/data", 1.0),
        (str(tmp_path / "b.csv"), 1.0),
    ]
    assert job.dataset.sources[2].chat_template == str(tmp_path / "chat.jinja")
    (tmp_path / "job.yaml").write_text(job.to_yaml())
    assert load_jobs([tmp_path / "job.yaml"]) == [job]
    jsonschema.Draft202012Validator(job_schema()).validate(text)
    jsonschema.Draft202012Validator(job_schema()).validate(json.loads(json.dumps({"jobs": [text]})))


@pytest.mark.parametrize(
    ("entries", "field", "words"),
    [
        (
            ({"path": "a"}, {"path": "b", "weight": 0}),
            "dataset[1].weight",
            "0 is out of range; allowed: a number above 0",
        ),
        (({"path": "a"}, {"path": "b", "weigth": 2}), "dataset[1].weigth", "is not a field here; did you mean"),
        (({"path": "a", "format": "alpaka"}, {"path": "b"}), "dataset[0].format", "did you mean alpaca?"),
        (({"path": "a"}, {"weight": 2}), "dataset[1].path", "is missing; give a .jsonl"),
        (({"path": "a", "weight": 2},), "dataset", "weight (2) does nothing for a single data set"),
        (("a.jsonl", "b.jsonl"), "dataset", "is not a mapping of fields"),
        ((), "dataset", "is not a mapping of fields"),
    ],
)
def test_what_is_wrong_with_an_entry_names_it(tmp_path, entries, field, words):
    with pytest.raises(JobFileError) as caught:
        jobs_from_mapping(document(*entries), "x", tmp_path)
    found = {problem.field: problem.message for problem in caught.value.problems}
    assert list(found) == [field]
    assert words in found[field]
    assert list(jsonschema.Draft202012Validator(job_schema()).iter_errors(document(*entries))) or "single" in words


def test_every_entry_is_looked_at_before_anything_starts(tmp_path):
    rows(tmp_path / "a.jsonl", 3, 4)
    (tmp_path / "b.jsonl").write_text('{"instruction": "Hi"}\n')
    [job] = jobs_from_mapping(document({"path": "a.jsonl"}, {"path": "b.jsonl"}, {"path": "no.jsonl"}), "x", tmp_path)
    found = {problem.field: problem.message for problem in check_files([job])}
    assert "does not exist" in found["dataset[2].path"]
    assert not [field for field in found if field.startswith(("dataset[0]", "dataset[1]"))]
    remark = first_records_remark(job.dataset, job.training)
    assert remark.startswith("dataset[1]: its data cannot be used: ")


def test_what_lies_in_rays_package_is_copied_entry_by_entry(tmp_path):
    package = tmp_path / "working_dir_files" / "_ray_pkg_1"
    for name in ("a.jsonl", "b.jsonl"):
        rows(package / name, 2, 3)
    [job] = jobs_from_mapping(document({"path": "a.jsonl"}, {"path": "b.jsonl", "weight": 0.5}), "x", package)
    [staged], _ = stage_jobs([job], tmp_path / "storage", str(tmp_path / "storage" / "outputs"))
    moved = [source.path for source in staged.dataset.sources]
    assert all(path.startswith(str(tmp_path / "storage" / "uploads")) for path in moved)
    assert [source.weight for source in staged.dataset.sources] == [1.0, 0.5]


def test_the_scheduler_counts_what_an_epoch_takes(tmp_path):
    rows(tmp_path / "a.jsonl", 10, 20)
    rows(tmp_path / "b.jsonl", 30, 5)
    entries = {"path": "a.jsonl", "weight": 3, "val_size": 2}, {"path": "b.jsonl", "weight": 0.2}
    [job] = jobs_from_mapping(document(*entries), "x", tmp_path)
    size = guess_size(job.dataset)
    assert (size.samples, size.mean_tokens) == (24 + 6, (24 * 20 + 6 * 5) / 30)
    [unknown] = jobs_from_mapping(document({"path": "a.jsonl"}, {"path": "org/data"}), "x", tmp_path)
    assert guess_size(unknown.dataset) is None
