"""What a Ray job says of the LoRA jobs that came with it."""

import json

from orchestrator.cluster.ray_internals import submission_id
from orchestrator.cluster.ray_job import with_jobs

ONE = {"id": "1a", "name": "pirate", "owner": "operator"}
TWO = {"id": "2b", "name": "butler", "owner": "operator"}


def test_later_jobs_join_earlier_ones_and_what_a_person_gave_stays():
    once = with_jobs({"job_submission_id": "x", "owner": "anna"}, [ONE])
    twice = with_jobs(once, [TWO])
    assert twice["lora_jobs"] == "pirate (1a), butler (2b)"
    assert (twice["owner"], twice["job_submission_id"]) == ("anna", "x")
    assert with_jobs({}, [ONE, TWO])["owner"] == "operator"


def test_a_process_knows_the_ray_job_that_started_it(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    assert submission_id() == "raysubmit_1"
    for odd in ("", "[]", '{"metadata": null}', "{"):
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", odd)
        assert submission_id() is None
