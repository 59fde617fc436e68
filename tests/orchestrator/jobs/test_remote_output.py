"""The orchestrator's side of an output folder in a bucket, on a real S3 server."""

import pytest

from gpu_actor.contract.config import DatasetConfig
from gpu_actor.storage.job_folder import StorageError
from gpu_actor.storage.remote_folder import RemoteFolder
from orchestrator.jobs.job import JobSpec
from orchestrator.jobs.output_folder import discard_run, make_folders, newest_checkpoint, read_metrics, sampled_metrics
from support.s3_server import BUCKET, s3_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def s3():
    with s3_server() as server:
        yield server


def job(name, place):
    data = DatasetConfig(path="/data.jsonl")
    return JobSpec(name=name, base_model="org/base", dataset=data, output_dir=f"s3://{BUCKET}/{place}")


def test_a_bucket_is_claimed_read_and_cleared(s3):
    one, other = job("one", "runs/one"), job("other", "runs/one")
    assert make_folders([one]) == []
    assert make_folders([one]) == [], "the same submission may come twice"
    assert ["is not empty" in problem.message for problem in make_folders([other])] == [True]
    assert make_folders([job("near", "runs/one-more")]) == [], "a folder whose name begins alike is another"

    remote = RemoteFolder(one.output_dir)
    assert newest_checkpoint(one.output_dir) is None
    for name in ("checkpoint-5/checksums.json", "checkpoint-5/a", "checkpoint-10/a", "checkpoint-best-3/a"):
        remote.write(name, b"{}")
    remote.write("metrics.jsonl", b'{"step": 1}\n{"step": 2}\n{"step": 2, "eval_loss": 1}\n')
    assert newest_checkpoint(one.output_dir) == "checkpoint-5", "what has no checksums is no checkpoint"
    assert [row["step"] for row in read_metrics(one.output_dir, 1)] == [2, 2]
    assert sampled_metrics(one.output_dir, 1) == [{"step": 1}, {"step": 2, "eval_loss": 1}]
    discard_run(one.output_dir)
    assert remote.names() == {"job.yaml"}


def test_what_it_refuses_is_told_without_its_keys(s3):
    s3.refuses = lambda method, path: True
    try:
        (problem,) = make_folders([job("one", "refused/one")])
        with pytest.raises(StorageError, match="refused/one cannot be read"):
            read_metrics(f"s3://{BUCKET}/refused/one")
    finally:
        s3.well()
    assert problem.field == "output_dir"
    assert "s3://adapters/refused/one cannot be listed: the disk is full" in problem.message
