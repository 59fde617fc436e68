"""Jobs whose output folder is in a bucket, on a real cluster and a real S3 server."""

import os
import signal
from pathlib import Path

import pytest

from gpu_actor.storage.remote_folder import RemoteFolder
from support.cluster import LONG, processes, wait_until
from support.s3_server import BUCKET, ENVIRONMENT

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("ray_cluster"),
]
NAMES = {"adapter_config.json", "adapter_model.safetensors", "checksums.json", "job.yaml", "metrics.jsonl"}


def at(spec, place):
    return spec.model_copy(update={"output_dir": f"s3://{BUCKET}/{place}"})


def refused(orchestrator, spec):
    answer = orchestrator.call("submit", [spec.model_dump(mode="json")], os.urandom(8).hex())
    (problem,) = answer["problems"]
    assert problem["field"] == "output_dir"
    return problem["message"]


def test_a_job_in_a_bucket_survives_its_actor_and_is_the_same_to_the_byte(orchestrator, make, s3):
    here, there = make("ab", steps=120, save_steps=20), at(make("ba", steps=120, save_steps=20), "team/ba")
    remote = RemoteFolder(there.output_dir)
    orchestrator.wait(orchestrator.submit(here)[0], "SUCCEEDED")
    (job_id,) = orchestrator.submit(there)
    wait_until(lambda: any(name.endswith("/checksums.json") for name in remote.names()))
    ((_, pid),) = processes("tiny-a@cpu:0#").items()
    os.kill(pid, signal.SIGKILL)
    job = orchestrator.wait(job_id, "SUCCEEDED")

    assert job["attempt"] == 2
    wait_until(lambda: remote.names() == NAMES)  # checkpoints go once the end is recorded
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert remote.read(name) == (Path(here.output_dir) / name).read_bytes()
    assert [row["step"] for row in orchestrator.call("metrics", job_id)] == list(range(1, 121))
    assert not any(ENVIRONMENT["AWS_SECRET_ACCESS_KEY"] in event for event in orchestrator.events(job_id))

    assert "outside the allowed folders" in refused(orchestrator, at(make("other"), "other/a"))
    assert "is not empty" in refused(orchestrator, at(make("again"), "team/ba"))
    s3.refuses = lambda method, path: method == "PUT"
    assert "cannot be written: the disk is full" in refused(orchestrator, at(make("full"), "team/full"))


def test_a_storage_that_is_away_costs_time_and_no_job(orchestrator, make, s3):
    spec = at(make("waits", steps=LONG, save_steps=2), "team/waits")
    orchestrator.wait(orchestrator.submit(make("warm", steps=1))[0], "SUCCEEDED")
    (job_id,) = orchestrator.submit(spec)
    orchestrator.wait(job_id, until=lambda job: job["step"] >= 4)
    s3.refuses = lambda method, path: method in ("GET", "PUT")
    told = orchestrator.wait(job_id, until=lambda job: "waits at step" in job["unsaved"])
    assert "the disk is full" in told["unsaved"]
    orchestrator.call("pause", job_id)
    orchestrator.wait(job_id, "PAUSED")
    orchestrator.call("resume", job_id)
    waits = orchestrator.wait(job_id, until=lambda job: job["unsaved"].startswith("the job waits: "))
    assert waits["state"] == "RUNNING"
    assert sum("the job waits: " in event for event in orchestrator.events(job_id)) == 1
    s3.well()
    step = waits["step"]
    orchestrator.wait(job_id, until=lambda job: job["step"] > step + 4)
    orchestrator.call("cancel", job_id)
    orchestrator.wait(job_id, "CANCELLED")
    remote = RemoteFolder(spec.output_dir)
    wait_until(lambda: not any("checkpoint" in name for name in remote.names()))
