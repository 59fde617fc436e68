"""The way of a job on real Ray, with the real engine on a tiny random LLaMA; all tests share an orchestrator."""

import re
import sqlite3
import time
from pathlib import Path

import psutil
import pytest
import ray

from gpu_actor.contract.config import DatasetConfig
from gpu_actor.contract.errors import IllegalTransitionError, JobNotFoundError
from gpu_actor.contract.lora_config import LoraConfig
from orchestrator.endpoint.references import uploads
from orchestrator.knowledge.description_files import recall
from support.cluster import LONG, YIELDING, checkpointed, processes, steps_of, wait_until
from support.tiny import write_rows

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600), pytest.mark.xdist_group("ray_cluster")]


# -- from submission to adapter ----------------------------------------------------------------------------------------


def test_jobs_train_together_and_leave_whole_adapters(orchestrator, make):
    ids = orchestrator.submit(make("one", steps=6), make("two", steps=9, r=8), make("three", steps=3))
    jobs = [orchestrator.wait(job_id, "SUCCEEDED") for job_id in ids]
    assert [job["step"] for job in jobs] == [6, 9, 3]
    assert {job["actor"] for job in jobs} == {None}
    for job in jobs:
        folder = Path(job["output_dir"])
        assert {path.name for path in folder.iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
            "checksums.json",
            "job.yaml",
            "metrics.jsonl",
        }
        assert steps_of(job) == list(range(1, job["total_steps"] + 1))
        assert job["submitted_at"] < job["started_at"] < job["finished_at"]
        assert job["tokens"] > 0
        assert job["samples"] == 16
    assert orchestrator.events(ids[0])[-1] == "succeeded after 6 steps"
    assert recall(jobs[0]["base_model"]), "the next orchestrator would have to examine the base model again"
    (actor,) = orchestrator.actors()
    assert actor["name"].startswith("tiny-a@cpu:0#")
    assert (actor["state"], actor["jobs"], actor["base_model"]) == ("ready", [], jobs[0]["base_model"])
    assert 0 < actor["base_bytes"] < actor["memory_used"] <= actor["memory_limit"]
    assert orchestrator.call("cluster")["jobs"]["SUCCEEDED"] >= 3
    assert [row["step"] for row in orchestrator.call("metrics", "two", 5)] == [6, 7, 8, 9]
    assert orchestrator.call("metrics", "two", 9) == []


def test_actors_are_as_nice_as_they_were_asked_to_be(orchestrator, make):
    """By Ray's default, 15, they would yield to every other program."""
    orchestrator.wait(orchestrator.submit(make("nice", steps=1))[0], "SUCCEEDED")
    found = processes("tiny-a@cpu:0#") | processes("loray-controller")
    asked = int(YIELDING["RAY_worker_niceness"])
    assert [psutil.Process(pid).nice() for pid in found.values()] == [psutil.Process().nice() + asked] * 2


def test_the_job_file_in_the_output_folder_gives_the_same_job_again(orchestrator, make):
    from orchestrator.jobs.job_file import load_jobs

    spec = make("one", steps=2)
    orchestrator.submit(spec)
    assert load_jobs([Path(spec.output_dir) / "job.yaml"]) == [spec]


def test_every_job_is_a_row_of_its_own_in_the_dashboard(orchestrator, make):
    from ray.util.state import list_tasks

    bad = make("row-bad", steps=2)
    Path(bad.dataset.path).write_text("[]\n")
    orchestrator.submit(make("row-good", steps=2, r=8), bad, make("row-long", steps=LONG))
    orchestrator.submit(make("row-waits", steps=2, base="tiny-b"), make("row-dropped", steps=2, base="tiny-b"))
    orchestrator.call("cancel", "row-dropped")
    orchestrator.wait("row-good", "SUCCEEDED")
    orchestrator.wait("row-bad", "FAILED")
    orchestrator.wait("row-long", "RUNNING")
    address = ray.get_runtime_context().gcs_address
    wanted = {
        "lora[row-good] tiny-a r=8": "FINISHED",
        "lora[row-bad] tiny-a r=4": "FAILED",
        "lora[row-long] tiny-a r=4": "RUNNING",
        "lora[row-waits] tiny-b r=4": "PENDING_ARGS_AVAIL",
        "lora[row-dropped] tiny-b r=4": "FAILED",
    }

    def rows():
        tasks = list_tasks(address=address, detail=True, limit=10_000)
        assert {task.name for task in tasks if task.name.startswith(("Controller.", "GpuActor."))} == set()
        found = {task.name: task for task in tasks if task.name.startswith("lora[row-")}
        return found if {name: task.state for name, task in found.items()} == wanted else None

    failed = wait_until(rows)["lora[row-bad] tiny-a r=4"]
    assert orchestrator.call("get_job", "row-bad")["reason"] in failed.error_message


# -- submitting --------------------------------------------------------------------------------------------------------


def test_all_problems_of_all_jobs_come_together_and_nothing_is_accepted(orchestrator, make, tmp_path):
    orchestrator.submit(make("taken", steps=LONG))
    good, taken = make("good"), make("taken")
    bad = [
        make("good2").model_copy(update={"lora": LoraConfig(target_modules=["qproj"])}).model_dump(mode="json"),
        {**make("typo").model_dump(mode="json"), "learning_rat": 1},
        taken.model_copy(update={"output_dir": str(tmp_path / "elsewhere")}).model_dump(mode="json"),
    ]
    answer = orchestrator.call("submit", [good.model_dump(mode="json"), *bad], "r1")
    assert answer["accepted"] == []
    told = {problem["source"]: (problem["field"], problem["message"]) for problem in answer["problems"]}
    assert set(told) == {"job good2", "job typo", "job taken"}
    assert told["job good2"][0] == "lora.target_modules"
    assert "q_proj" in told["job good2"][1]
    assert told["job typo"][0] == "learning_rat"
    assert "live job" in told["job taken"][1]
    assert [job["name"] for job in orchestrator.live()] == ["taken"]
    assert not Path(good.output_dir).exists()


def test_a_request_is_carried_out_once(orchestrator, make):
    first = orchestrator.submit(make("once", steps=2), request_id="once")
    assert orchestrator.submit(make("once", steps=2), request_id="once") == first
    orchestrator.wait("once", "SUCCEEDED")
    assert orchestrator.submit(make("once", steps=2), request_id="once") == first
    assert [job["name"] for job in orchestrator.call("list_jobs")].count("once") == 1


def test_unknown_jobs_are_refused_by_name(orchestrator):
    with pytest.raises(ray.exceptions.RayTaskError) as error:
        orchestrator.call("get_job", "nobody")
    assert isinstance(error.value.cause, JobNotFoundError)


# -- wishes ------------------------------------------------------------------------------------------------------------


def test_cancel_ends_one_job_alone_and_removes_its_checkpoints(orchestrator, make):
    orchestrator.submit(make("gone", steps=LONG), make("stays", steps=LONG))
    for name in ("gone", "stays"):
        job = orchestrator.wait(name, "RUNNING", until=lambda job: job["step"] > 6)
    orchestrator.call("cancel", "gone")
    job = orchestrator.wait("gone", "CANCELLED")
    assert not checkpointed(job)()
    assert job["finished_at"]
    before = orchestrator.call("get_job", "stays")
    orchestrator.wait("stays", "RUNNING", until=lambda job: job["step"] > before["step"] + 3)
    assert orchestrator.call("cancel", "gone")["state"] == "CANCELLED"


def test_pause_resume_and_an_uninterrupted_run_make_the_same_adapter(orchestrator, make):
    spec = make("one", steps=150, save_steps=1000)
    orchestrator.submit(spec)
    orchestrator.wait("one", "RUNNING", until=lambda job: job["step"] > 3)
    orchestrator.call("pause", "one")
    job = orchestrator.wait("one", "PAUSED", until=lambda job: True)
    assert "loray resume one" in job["waiting_for"]
    assert [path.name for path in checkpointed(job)()] == [f"checkpoint-{job['step']}"]
    assert 3 < job["step"] < 150
    time.sleep(0.5)
    assert orchestrator.call("get_job", "one")["state"] == "PAUSED"
    orchestrator.call("resume", "one")
    paused = orchestrator.wait("one", "SUCCEEDED")
    assert (paused["attempt"], paused["retries"]) == (2, 0)
    assert steps_of(paused) == list(range(1, 151))
    whole = spec.model_copy(update={"name": "whole", "output_dir": spec.output_dir + "-whole"})
    orchestrator.submit(whole)
    orchestrator.wait("whole", "SUCCEEDED")
    adapters = [
        (Path(folder) / "adapter_model.safetensors").read_bytes() for folder in (spec.output_dir, whole.output_dir)
    ]
    assert adapters[0] == adapters[1]


def test_a_queued_job_can_be_paused_and_cancelled_at_once(orchestrator, make):
    orchestrator.submit(make("first", steps=LONG), make("queued", base="tiny-b"))
    orchestrator.wait("first", "RUNNING")
    assert orchestrator.call("pause", "queued")["state"] == "PAUSED"
    assert orchestrator.call("pause", "queued")["state"] == "PAUSED"
    assert orchestrator.call("resume", "queued")["state"] == "QUEUED"
    assert orchestrator.call("cancel", "queued")["state"] == "CANCELLED"


def test_while_somebody_holds_the_job_table_reads_are_answered_and_a_wish_when_it_is_written(orchestrator, make):
    orchestrator.submit(make("one", steps=LONG))
    orchestrator.wait("one", "RUNNING", until=lambda job: job["step"])
    other = sqlite3.connect(orchestrator.config.database_url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    wish = orchestrator.handle.pause.remote("one")
    try:
        for _ in range(20):
            assert orchestrator.call("get_job", "one")["state"] == "RUNNING"
            assert "one" in [job["name"] for job in orchestrator.call("list_jobs")]
            assert orchestrator.call("cluster")["controller"]["trouble"] is None
            time.sleep(0.05)
        assert ray.wait([wish], timeout=12)[0] == []  # longer than SQLite waits by itself
    finally:
        other.close()
    assert ray.get(wish, timeout=60)["name"] == "one"
    orchestrator.wait("one", "PAUSED")


def test_illegal_wishes_are_refused_in_words(orchestrator, make):
    orchestrator.submit(make("one", steps=2))
    orchestrator.wait("one", "SUCCEEDED")
    for verb in ("cancel", "pause", "resume", "retry"):
        with pytest.raises(ray.exceptions.RayTaskError) as error:
            orchestrator.call(verb, "one")
        assert isinstance(error.value.cause, IllegalTransitionError)
        assert "SUCCEEDED" in str(error.value.cause)


def test_a_failed_job_is_told_and_can_be_retried_from_the_start(orchestrator, make):
    spec = make("one", steps=8)
    good = Path(spec.dataset.path).read_text()
    sent = uploads(orchestrator.config.state_folder) / ("a" * 64)  # as if its client had sent them
    sent.mkdir(parents=True)
    spec = spec.model_copy(update={"dataset": spec.dataset.model_copy(update={"path": str(sent / "data.jsonl")})})
    Path(spec.dataset.path).write_text(good + '{"input_ids": [1, 2}\n')
    (job_id,) = orchestrator.submit(spec)
    orchestrator.submit(make("other", steps=8))
    failed = orchestrator.wait("one", "FAILED")
    assert "17" in failed["reason"]  # the line
    orchestrator.wait("other", "SUCCEEDED")
    Path(spec.dataset.path).unlink()
    with pytest.raises(ray.exceptions.RayTaskError, match=r"data\.jsonl, which was sent with it, is gone"):
        orchestrator.call("retry", "one", True)
    Path(spec.dataset.path).write_text(good)
    (Path(spec.output_dir) / "metrics.jsonl").write_text('{"step": 1}\n')
    (Path(spec.output_dir) / "checkpoint-3").mkdir()
    again = orchestrator.call("retry", "one", True)
    assert (again["id"], again["reason"], again["step"]) == (job_id, None, 0)
    done = orchestrator.wait("one", "SUCCEEDED")
    assert steps_of(done) == list(range(1, 9))
    assert done["attempt"] == 2


def test_a_hostile_chat_template_ends_its_own_job_alone(orchestrator, make, tmp_path):
    """Nobody renders it on submission; on the actor a process with limits does."""
    write_rows(tmp_path / "said.jsonl", [{"instruction": "who are you", "output": "I am a model"}] * 4)
    templates = {
        "greedy": "{% set n = namespace(s='x') %}{% for i in range(40) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "endless": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "good": "{% for m in messages %}{{ m.content }} {% endfor %}",
    }
    jobs = []
    for name, template in templates.items():
        data = DatasetConfig(path=str(tmp_path / "said.jsonl"), chat_template=template)
        jobs.append(make(name, steps=3).model_copy(update={"dataset": data}))
    orchestrator.submit(make("before", steps=1))
    orchestrator.wait("before", "SUCCEEDED")
    pids = [orchestrator.call("ping")["pid"], *processes("tiny-a@").values()]
    peaks = [peak_memory(pid) for pid in pids]
    orchestrator.submit(*jobs)
    greedy = orchestrator.wait("greedy", "FAILED")["reason"]
    assert re.search("takes more than .* GiB of memory to read and encode", greedy)
    assert "made more than 1,000,000 steps" in orchestrator.wait("endless", "FAILED")["reason"]
    orchestrator.wait("good", "SUCCEEDED")
    assert all(peak_memory(pid) < peak + 2**28 for pid, peak in zip(pids, peaks, strict=True))


def peak_memory(pid):
    """Bytes that a process has had at most."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1])


# -- another base model ------------------------------------------------------------------------------------------------


def test_an_idle_actor_changes_its_base_and_a_busy_one_does_not(orchestrator, make):
    """The last test here: those before it find the base model that they train on loaded."""
    orchestrator.submit(make("a", steps=LONG), make("b", steps=3, base="tiny-b"))
    orchestrator.wait("a", "RUNNING", until=lambda job: job["step"])
    waiting = orchestrator.wait("b", "QUEUED", until=lambda job: "busy" in job["waiting_for"])
    assert waiting["waiting_for"].startswith("no actor hosts ")
    orchestrator.call("cancel", "a")
    orchestrator.wait("b", "SUCCEEDED")
    assert [actor["name"].split("@")[0] for actor in orchestrator.actors()] == ["tiny-b"]
