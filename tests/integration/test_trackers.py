"""An experiment tracker of a job whose actor is killed, on real Ray: one run, every step once, and the end."""

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from support import tracker_runs
from support.cluster import checkpointed, processes, processes_of, steps_of, wait_until
from support.priorities import lowered, priorities

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600), pytest.mark.xdist_group("ray_cluster")]


def test_a_job_whose_actor_is_killed_stays_one_run(orchestrator, make):
    spec = make("tracked", steps=300).model_copy(update={"report_to": ["tensorboard"]})
    out = Path(spec.output_dir)
    (job_id,) = orchestrator.submit(spec)
    job = orchestrator.wait(job_id, "RUNNING", until=lambda job: job["step"] > 20 and checkpointed(job)())
    (pid,) = processes(job["actor"]).values()
    os.kill(pid, signal.SIGSTOP)  # it goes no further before the tracker has some of its rows
    wait_until(lambda: (out / "tracked-tensorboard.json").exists())
    os.kill(pid, signal.SIGKILL)
    job = orchestrator.wait(job_id, "SUCCEEDED")
    assert job["attempt"] == 2
    assert steps_of(job) == list(range(1, 301))
    wait_until(lambda: json.loads((out / "tracked-tensorboard.json").read_text())["over"])
    ((_, run),) = tracker_runs.tensorboard(None, out).items()
    assert sorted(step for step, _ in run["train/loss"]) == list(range(1, 301))
    assert run["state"] == [(300, "SUCCEEDED")]
    assert not list((Path(orchestrator.config.storage) / "tracking").glob(f"{job_id}*"))
    (actor,), (trackers,) = processes_of("GpuActor"), processes_of("TrackerProcess")
    # no thread of theirs takes a core from one that trains
    assert {policy for _, policy in priorities(actor)} == {os.SCHED_OTHER}
    assert {policy for _, policy in priorities(trackers)} == {os.SCHED_BATCH}
    assert psutil.Process(trackers).nice() == lowered(psutil.Process(actor).nice())
