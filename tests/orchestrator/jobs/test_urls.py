"""Places named by URLs: what Loray takes, what it refuses and in which words, and whom it lets write there."""

import pytest

from gpu_actor.paths.locations import loray_home
from gpu_actor.paths.roots import outside
from gpu_actor.paths.urls import url_problem
from orchestrator.cluster.cluster_config import ClusterFileError
from orchestrator.cluster.cluster_file import load_cluster_config
from orchestrator.endpoint.references import reach
from orchestrator.jobs.job_file import jobs_from_mapping
from orchestrator.jobs.preflight import check_files
from support.tiny import token_rows, write_rows


def job(tmp_path, **fields):
    write_rows(tmp_path / "d.jsonl", token_rows(4))
    given = {"name": "a", "base_model": "org/base", "dataset": {"path": "d.jsonl", "format": "tokens"}, **fields}
    return jobs_from_mapping(given, "job", tmp_path)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://out", "would live and die with one process"),
        ("ftp://host/out", "ftp:// is not supported"),
        ("simplecache::s3://bucket/out", "simplecache::s3:// is not supported"),
        ("s3://key:secret@bucket/out", "holds credentials"),
        ("s3://bucket", "is no folder of a bucket"),
        ("s3://bucket/../other", "is no folder of a bucket"),
        ("s3://bucket/a//b", "is no folder of a bucket"),
        ("s3://bucket/a?version=1", "is no folder of a bucket"),
        ("s3://bucket/a*", "is no folder of a bucket"),
        ("file://elsewhere/out", "file:// is not supported"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, url, said):
    problems = [p for p in check_files(job(tmp_path, output_dir=url)) if p.field == "output_dir"]
    assert len(problems) == 1
    assert said in problems[0].message
    assert "secret" not in problems[0].message
    assert "s3://BUCKET/FOLDER" in problems[0].message


def test_a_file_url_is_the_folder_and_a_bucket_stays_what_it_is(tmp_path):
    (spec,) = job(tmp_path, output_dir=f"file://{tmp_path}/out")
    assert spec.output_dir == f"{tmp_path}/out"
    grid = job(tmp_path, output_dir="s3://bucket/run/", grid={"lora.r": [2, 4]})
    assert [spec.output_dir for spec in grid] == ["s3://bucket/run/r2", "s3://bucket/run/r4"]
    assert [p for p in check_files(grid) if p.field == "output_dir"] == []


def test_what_is_read_is_no_url(tmp_path):
    problems = check_files(job(tmp_path, output_dir="s3://bucket/a", lora={"init_adapter": "s3://bucket/b"}))
    assert [(p.field, "only output_dir may be in a bucket" in p.message) for p in problems] == [
        ("lora.init_adapter", True)
    ]


def test_allowed_roots_hold_for_buckets(tmp_path):
    roots = [str(tmp_path), "s3://bucket/team"]
    assert outside("s3://bucket/team/a", roots) == ""
    for other in ("s3://bucket/teams/a", "s3://bucket/b", "s3://other/team/a", "gs://bucket/team/a"):
        assert "outside the allowed folders; allowed: below" in outside(other, roots)
    assert outside(str(tmp_path / "a"), roots) == ""
    assert "outside the allowed folders" in outside("/srv/a", ["s3://bucket/team"])
    assert "outside" in outside("s3://bucket/a", [str(tmp_path)])


def test_a_cluster_file_allows_buckets_and_keeps_its_state_in_a_folder(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("storage: state\nallowed_roots: [s3://bucket/team, data]\n")
    config = load_cluster_config(path)
    assert config.allowed_roots == ["s3://bucket/team", str(tmp_path / "data")]
    assert config.outputs == str(tmp_path / "state" / "outputs")
    path.write_text("storage: s3://bucket/all\nallowed_roots: [data]\n")
    config = load_cluster_config(path)
    assert config.outputs == "s3://bucket/all/outputs"
    assert config.state_folder == loray_home()
    assert config.database_url == f"sqlite:///{loray_home()}/loray.db"
    assert outside("s3://bucket/all/outputs/a", config.written_roots) == ""
    assert reach("anna", config)[-1] == "s3://bucket/all/outputs/anna"
    path.write_text("storage: ftp://bucket/all\nallowed_roots: [memory://x]\n")
    with pytest.raises(ClusterFileError) as refused:
        load_cluster_config(path)
    told = {problem.field: problem.message for problem in refused.value.problems}
    assert "ftp:// is not supported; allowed: a folder" in told["storage"]
    assert "would live and die" in " ".join(told.values())


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("gpu_actor.paths.urls.find_spec", lambda name: None)
    assert url_problem("s3://bucket/a") == "'s3://bucket/a' needs the library s3fs: pip install loray[s3]"
