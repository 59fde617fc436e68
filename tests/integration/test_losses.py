"""Processes that die, on a real Ray cluster: nothing accepted is lost, nothing is done twice."""

import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from orchestrator.jobs.output_folder import newest_checkpoint
from support.cluster import LONG, checkpointed, processes, steps_of, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600), pytest.mark.xdist_group("ray_cluster")]


def first_checkpoint(orchestrator, spec):
    """Submit a job and wait for a checkpoint; returns name and process id of its actor, for a kill at once."""
    orchestrator.submit(spec)
    orchestrator.wait(spec.name, "RUNNING")
    ((name, pid),) = wait_until(lambda: processes("tiny-a@")).items()  # before the job is far: Ray takes its time
    orchestrator.wait(spec.name, "RUNNING", until=checkpointed({"output_dir": spec.output_dir}))
    return name, pid


def test_a_killed_orchestrator_comes_back_and_nothing_is_lost_or_doubled(orchestrator, make):
    ids = orchestrator.submit(make("one", steps=150), make("two", steps=LONG))
    orchestrator.wait("one", "RUNNING", until=lambda job: job["step"] > 2)
    orchestrator.wait("two", "RUNNING", until=lambda job: job["step"] > 2)
    actors = processes("tiny-a@")
    os.kill(orchestrator.call("ping")["pid"], signal.SIGKILL)
    late = orchestrator.submit(make("late", steps=5))  # waits for the new process by itself
    done = [orchestrator.wait(job_id, "SUCCEEDED") for job_id in (ids[0], *late)]
    assert processes("tiny-a@") == actors
    assert [job["attempt"] for job in done] == [1, 1]
    assert steps_of(done[0]) == list(range(1, 151))
    assert [job["id"] for job in orchestrator.live()] == [ids[1]]
    assert orchestrator.call("get_job", "two")["attempt"] == 1


def test_a_wish_outlives_the_orchestrator_that_heard_it(orchestrator, make):
    orchestrator.submit(make("one", steps=LONG))
    orchestrator.wait("one", "RUNNING", until=lambda job: job["step"] > 2)
    ((_, pid),) = processes("tiny-a@").items()
    os.kill(pid, signal.SIGSTOP)  # the actor cannot hear of it
    try:
        orchestrator.call("cancel", "one")
        os.kill(orchestrator.call("ping")["pid"], signal.SIGKILL)
        assert orchestrator.call("get_job", "one")["state"] == "RUNNING"
    finally:
        os.kill(pid, signal.SIGCONT)
    orchestrator.wait("one", "CANCELLED")


def test_a_killed_actor_is_replaced_and_its_job_goes_on_from_the_checkpoint(orchestrator, make):
    spec = make("one", steps=150, save_steps=20)
    name, pid = first_checkpoint(orchestrator, spec)
    os.kill(pid, signal.SIGKILL)
    done = orchestrator.wait("one", "SUCCEEDED")
    assert (done["attempt"], done["retries"]) == (2, 0)
    assert any(name in event and "back in the queue" in event for event in orchestrator.events("one"))
    assert steps_of(done) == list(range(1, 151))
    assert name not in processes("tiny-a@")
    whole = spec.model_copy(update={"name": "whole", "output_dir": spec.output_dir + "-whole"})
    orchestrator.submit(whole)
    orchestrator.wait("whole", "SUCCEEDED")
    adapters = [(Path(s.output_dir) / "adapter_model.safetensors").read_bytes() for s in (spec, whole)]
    assert adapters[0] == adapters[1]


def test_a_job_that_kills_every_actor_it_is_on_is_found_out_and_its_neighbours_go_on_unharmed(orchestrator, make):
    """Whenever the job is on an actor, the actor's process is killed."""
    good = [make(name, steps=100, save_steps=10) for name in ("good-1", "good-2")]
    bad_id = orchestrator.submit(*good, make("bad", steps=LONG))[-1]
    kills = 0
    while (job := orchestrator.wait(bad_id, "RUNNING", "FAILED"))["state"] == "RUNNING":
        pid = wait_until(lambda name=job["actor"]: processes("tiny-a@").get(name, 1))
        if pid > 1:  # else it is gone already, and its death not heard of yet
            os.kill(pid, signal.SIGKILL)
            kills += 1
        orchestrator.wait(bad_id, until=lambda now, before=job["attempt"]: now["state"] != "RUNNING")
    assert kills == 3
    assert "no other job on it" in job["reason"]
    assert job["retries"] == 1
    done = [orchestrator.wait(spec.name, "SUCCEEDED") for spec in good]
    assert [job["retries"] for job in done] == [0, 0]
    assert any("tried alone" in event or "is cleared" in event for event in orchestrator.events("good-2"))
    alone = [s.model_copy(update={"name": f"{s.name}-alone", "output_dir": s.output_dir + "-alone"}) for s in good]
    orchestrator.submit(*alone)
    for disturbed, undisturbed in zip(good, alone, strict=True):
        orchestrator.wait(undisturbed.name, "SUCCEEDED")
        adapters = [(Path(s.output_dir) / "adapter_model.safetensors").read_bytes() for s in (disturbed, undisturbed)]
        assert adapters[0] == adapters[1]


def test_a_job_that_keeps_losing_its_actor_fails_in_the_end_and_a_retry_goes_on_from_its_checkpoint(orchestrator, make):
    spec = make("one", steps=600, max_retries=0, save_steps=50)
    _, pid = first_checkpoint(orchestrator, spec)
    os.kill(pid, signal.SIGKILL)
    failed = orchestrator.wait("one", "FAILED")
    assert "the process of its actor died with no other job on it" in failed["reason"]
    newest = newest_checkpoint(failed["output_dir"])
    orchestrator.call("retry", "one")
    assert orchestrator.events("one")[-1] == f"retried: it goes on from {newest}"
    done = orchestrator.wait("one", "SUCCEEDED")
    assert (done["attempt"], done["retries"]) == (2, 0)
    assert steps_of(done) == list(range(1, 601))


def test_a_full_disk_makes_a_job_wait_and_a_flipped_bit_costs_it_steps(orchestrator, make):
    """The limit on the actor's files stands for the disk: no checkpoint fits below it."""
    spec = make("one", steps=150, save_steps=10, max_unsaved_steps=15, r=64)
    whole = spec.model_copy(update={"name": "whole", "output_dir": spec.output_dir + "-whole"})
    _, pid = first_checkpoint(orchestrator, spec)
    actor = psutil.Process(pid)
    before = actor.rlimit(psutil.RLIMIT_FSIZE)
    actor.rlimit(psutil.RLIMIT_FSIZE, (200_000, before[1]))
    waits = orchestrator.wait("one", "RUNNING", until=lambda job: "waits at step" in job["unsaved"])
    assert "File too large" in waits["unsaved"]
    actor.rlimit(psutil.RLIMIT_FSIZE, before)
    saved = orchestrator.wait(
        "one", "RUNNING", until=lambda job: job["step"] > waits["step"] + 10 and not job["unsaved"]
    )
    os.kill(pid, signal.SIGKILL)
    damaged = newest_checkpoint(saved["output_dir"])
    optimizer = Path(saved["output_dir"]) / damaged / "optimizer.safetensors"
    content = bytearray(optimizer.read_bytes())
    content[-1] ^= 1
    optimizer.write_bytes(content)
    orchestrator.wait("one", "SUCCEEDED")
    events = orchestrator.events("one")
    for part in ("the job waits at step", "its files can be written again", f"{damaged} is damaged and was removed"):
        assert [part in event for event in events].count(True) == 1, (part, events)
    orchestrator.submit(whole)
    orchestrator.wait("whole", "SUCCEEDED")
    adapters = [(Path(s.output_dir) / "adapter_model.safetensors").read_bytes() for s in (spec, whole)]
    assert adapters[0] == adapters[1]


def test_both_die_at_once(orchestrator, make):
    spec = make("one", steps=150, save_steps=20)
    orchestrators_pid = orchestrator.call("ping")["pid"]
    _, pid = first_checkpoint(orchestrator, spec)
    os.kill(orchestrators_pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    done = orchestrator.wait("one", "SUCCEEDED")
    assert done["retries"] == 0
    assert steps_of(done) == list(range(1, 151))


def test_a_base_that_cannot_be_loaded_fails_its_jobs_with_the_reason(orchestrator, make, bases, tmp_path):
    shutil.copytree(bases / "tiny-a", tmp_path / "broken")
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    spec = make("one").model_copy(update={"base_model": str(tmp_path / "broken")})
    orchestrator.submit(spec)
    failed = orchestrator.wait("one", "FAILED")
    assert "broken cannot be loaded on cpu:0" in failed["reason"]
    orchestrator.submit(make("good", steps=2))
    orchestrator.wait("good", "SUCCEEDED")


def test_cancel_wins_when_the_actor_dies_meanwhile(orchestrator, make):
    orchestrator.submit(make("one", steps=LONG))
    orchestrator.wait("one", "RUNNING", until=lambda job: job["step"])
    ((_, pid),) = processes("tiny-a@").items()
    os.kill(pid, signal.SIGSTOP)  # it can take no note any more
    orchestrator.call("cancel", "one")
    os.kill(pid, signal.SIGKILL)
    job = orchestrator.wait("one", "CANCELLED")
    assert not checkpointed(job)()
