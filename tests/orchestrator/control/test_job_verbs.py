"""What a person asks of one job: the store and the output folder after it."""

from pathlib import Path

import pytest

from gpu_actor.contract.errors import IllegalTransitionError
from orchestrator.control import job_verbs
from orchestrator.jobs.states import JobState
from support.house import House

FILES = ("metrics.jsonl", "adapter_model.safetensors", "adapter_config.json", "job.yaml")


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


def ended(house, state=JobState.FAILED, checkpoints=(), name="a", out="out"):
    """A job that trained and is over, with what it left behind."""
    job = house.store.get(house.submit(name, out=out))
    folder = Path(job.output_dir)
    folder.mkdir(exist_ok=True)
    for step in checkpoints:
        (folder / f"checkpoint-{step}").mkdir()
    for file in FILES:
        (folder / file).write_text(f"of {name}")
    house.store.assign(job.id, "x", "boot")
    return house.store.move(job.id, state, "over", progress={"step": 2750}, reason="why", retries=3)


def retried(house, job, *, from_start=False):
    """As the orchestrator does it, whose look at the files may take long."""
    checkpoint = None
    if job_verbs.may_retry(house.store, job):
        checkpoint = job_verbs.checkpoint_to_retry(job, from_start=from_start)
    return job_verbs.retry(house.store, job, checkpoint)


def left(job):
    return {path.name for path in Path(job.output_dir).iterdir()}


def test_a_failed_job_goes_on_from_its_newest_checkpoint(house):
    job = ended(house, checkpoints=(900, 2700))
    (Path(job.output_dir) / "checkpoint-best").mkdir()
    before = left(job)
    again = retried(house, job)
    assert left(again) == before
    assert (again.state, again.retries, again.reason, again.progress) == (JobState.QUEUED, 0, None, {"step": 2750})
    assert house.store.events(job.id)[-1]["message"] == "retried: it goes on from checkpoint-2700"
    assert retried(house, again) == again


@pytest.mark.parametrize(("checkpoints", "from_start"), [((2700,), True), ((), False)])
def test_a_job_starts_over_when_asked_to_or_without_a_checkpoint(house, checkpoints, from_start):
    job = ended(house, checkpoints=checkpoints)
    again = retried(house, job, from_start=from_start)
    assert left(again) == {"job.yaml"}
    assert (again.state, again.progress, again.started_at) == (JobState.QUEUED, {}, None)
    assert house.store.events(job.id)[-1]["message"] == "retried: it starts over"


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED])
@pytest.mark.parametrize("from_start", [False, True])
def test_what_a_newer_job_left_in_the_folder_is_not_touched(house, state, from_start):
    """The user emptied the folder and submitted the job again, as the error says; then comes a script that retries."""
    old = ended(house)
    new = ended(house, state, name="b")
    before = {path: path.read_text() for path in Path(new.output_dir).iterdir()}
    with pytest.raises(IllegalTransitionError, match=rf"belongs to the newer job b \({new.id}, {state.value}\)"):
        retried(house, old, from_start=from_start)
    assert {path: path.read_text() for path in Path(new.output_dir).iterdir()} == before
    assert house.store.get(old.id).state is JobState.FAILED
    if state is not JobState.SUCCEEDED:
        assert retried(house, new, from_start=from_start).state is JobState.QUEUED
