"""The orchestrator on a real Ray cluster, with the real engine on a tiny random LLaMA."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import ray
import torch

from gpu_actor.config import DatasetConfig, TrainingConfig
from gpu_actor.errors import ClusterUnavailableError, IllegalTransitionError, JobNotFoundError
from gpu_actor.lora_config import LoraConfig
from orchestrator.job import JobSpec, QueueConfig
from support.cluster import orchestrator_runs, start_orchestrator, stop_orchestrator, wait_until
from support.tiny import tiny_model, token_rows, write_rows

pytestmark = pytest.mark.cluster

LONG = 100_000  # optimizer steps: far more than a test waits for
# Under a policy that takes nobody off: what is tested here is the machinery. test_scheduling.py has the default one.
FIFO = {"policy": "fifo-memory", "tick_seconds": 0.1}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Two tiny base models."""
    folder = tmp_path_factory.mktemp("bases")
    for seed, name in enumerate(("tiny-a", "tiny-b")):
        tiny_model(seed=seed).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def shared_storage(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def orchestrator(ray_cluster, shared_storage):
    """The orchestrator that most tests share: `auto` actors, which means one on the CPU."""
    try:
        same = ray.get(ray.get_actor("loray-controller", namespace="loray").ping.remote(), timeout=30)["storage"]
    except ValueError:
        same = None
    if same != str(shared_storage):
        stop_orchestrator()
    orchestrator = start_orchestrator(shared_storage, scheduler=FIFO)
    yield orchestrator
    orchestrator.clear()
    assert orchestrator.call("cluster")["controller"]["trouble"] is None


@pytest.fixture
def orchestrate(ray_cluster, tmp_path):
    """Starts an orchestrator of the test's own; further calls attach to it or start it again."""
    stop_orchestrator()
    started = []

    def orchestrate(**fields):
        started.append(start_orchestrator(tmp_path / "storage", **{"scheduler": FIFO, **fields}))
        return started[-1]

    yield orchestrate
    if started and orchestrator_runs():
        assert started[-1].call("cluster")["controller"]["trouble"] is None
    stop_orchestrator()


@pytest.fixture
def make(tmp_path, bases):
    """Makes a job of 16 short samples."""

    def make(name, steps=4, base="tiny-a", priority=0, max_retries=2, r=4, rows=None, **training):
        data = tmp_path / "data" / f"{name}.jsonl"
        data.parent.mkdir(exist_ok=True)
        write_rows(data, rows or token_rows(16, seed=sum(map(ord, name))))
        settings = {"max_steps": steps, "per_device_train_batch_size": 2, "cutoff_len": 64, "save_steps": 5, **training}
        return JobSpec(
            name=name,
            base_model=str(bases / base),
            dataset=DatasetConfig(path=str(data), format="tokens"),
            lora=LoraConfig(r=r),
            training=TrainingConfig(**settings),
            queue=QueueConfig(priority=priority, max_retries=max_retries),
            output_dir=str(tmp_path / "out" / name),
        )

    return make


def steps_of(job):
    lines = (Path(job["output_dir"]) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def processes(name):
    """Process ids of the living actors whose name starts so, from Ray itself."""
    from ray.util.state import list_actors

    address = ray.get_runtime_context().gcs_address
    found = list_actors(address=address, filters=[("state", "=", "ALIVE")], detail=True)
    return {actor.name: actor.pid for actor in found if actor.name and actor.name.startswith(name)}


def kill(name):
    """SIGKILL to the one living actor whose name starts so."""
    ((full_name, pid),) = processes(name).items()
    os.kill(pid, signal.SIGKILL)
    return full_name


def checkpointed(job):
    return lambda _=None: list(Path(job["output_dir"]).glob("checkpoint-*"))


# -- the way of a job --------------------------------------------------------------------------------------------------


def test_jobs_train_together_and_leave_whole_adapters(orchestrator, make):
    ids = orchestrator.submit(make("one", steps=6), make("two", steps=9, r=8), make("three", steps=3))
    jobs = [orchestrator.wait(job_id, "SUCCEEDED", timeout=120) for job_id in ids]
    assert [job["step"] for job in jobs] == [6, 9, 3]
    assert {job["actor"] for job in jobs} == {None}
    for job in jobs:
        folder = Path(job["output_dir"])
        assert {path.name for path in folder.iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
            "job.yaml",
            "metrics.jsonl",
        }
        assert steps_of(job) == list(range(1, job["total_steps"] + 1))
        assert job["submitted_at"] < job["started_at"] < job["finished_at"]
        assert job["tokens"] > 0
        assert job["samples"] == 16
    assert orchestrator.events(ids[0])[-1] == "succeeded after 6 steps"
    (actor,) = orchestrator.actors()
    assert actor["name"].startswith("tiny-a@cpu:0#")
    assert (actor["state"], actor["jobs"], actor["base_model"]) == ("ready", [], jobs[0]["base_model"])
    assert 0 < actor["base_bytes"] < actor["memory_used"] <= actor["memory_limit"]
    assert orchestrator.call("cluster")["jobs"]["SUCCEEDED"] >= 3
    assert [row["step"] for row in orchestrator.call("metrics", "two", 5)] == [6, 7, 8, 9]
    assert orchestrator.call("metrics", "two", 9) == []


def test_the_job_file_in_the_output_folder_gives_the_same_job_again(orchestrator, make):
    from orchestrator.job_file import load_jobs

    spec = make("one", steps=2)
    orchestrator.submit(spec)
    assert load_jobs([Path(spec.output_dir) / "job.yaml"]) == [spec]


def test_two_actors_host_two_bases(orchestrate, make):
    orchestrator = orchestrate(actors=[{}, {}])
    orchestrator.submit(make("a", steps=LONG), make("b", steps=LONG, base="tiny-b"))
    orchestrator.wait("a", "RUNNING", until=lambda job: job["step"])
    orchestrator.wait("b", "RUNNING", until=lambda job: job["step"])
    assert {tuple(actor["jobs"]) for actor in orchestrator.actors()} == {("a",), ("b",)}
    assert sum(actor["memory_limit"] for actor in orchestrator.actors()) < os.sysconf("SC_PHYS_PAGES") * os.sysconf(
        "SC_PAGE_SIZE"
    )


def test_an_idle_actor_changes_its_base_and_a_busy_one_does_not(orchestrator, make):
    orchestrator.submit(make("a", steps=LONG), make("b", steps=3, base="tiny-b"))
    orchestrator.wait("a", "RUNNING", until=lambda job: job["step"])
    waiting = orchestrator.wait("b", "QUEUED", until=lambda job: "busy" in job["waiting_for"])
    assert waiting["waiting_for"].startswith("no actor hosts ")
    orchestrator.call("cancel", "a")
    orchestrator.wait("b", "SUCCEEDED")
    assert [actor["name"].split("@")[0] for actor in orchestrator.actors()] == ["tiny-b"]


def test_an_actor_keeps_its_base_in_four_bits_when_the_cluster_file_says_so(orchestrate, make):
    from gpu_actor.footprint import weight_bytes
    from gpu_actor.inspect_base import describe_base

    orchestrator = orchestrate(actors=[{"quantization": "nf4"}])
    job = make("small", steps=3)
    orchestrator.submit(job)
    orchestrator.wait("small", "SUCCEEDED", timeout=120)
    (actor,) = orchestrator.actors()
    base = describe_base(job.base_model)
    assert actor["base_bytes"] == weight_bytes(base, 4, "nf4") < weight_bytes(base, 4)


def test_pickled_weights_are_read_only_where_the_operator_allows_it(orchestrate, make, tmp_path):
    folder = tmp_path / "pickled"
    model = tiny_model()
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    job = make("pickled", steps=2, base=folder)
    orchestrator = orchestrate()
    (problem,) = orchestrator.call("check", [job.model_dump(mode="json")])
    assert "pickle" in problem["message"]
    stop_orchestrator()
    orchestrator = orchestrate(allow_pickle=True)
    orchestrator.submit(job)
    orchestrator.wait("pickled", "SUCCEEDED", timeout=120)


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


def test_files_outside_the_allowed_folders_are_refused(orchestrate, make, tmp_path, bases):
    orchestrator = orchestrate(allowed_roots=[str(tmp_path / "data"), str(bases)])
    (problem,) = orchestrator.call("check", [make("one").model_dump(mode="json")])
    assert problem["field"] == "output_dir"
    assert "outside the allowed folders" in problem["message"]


def test_a_base_that_no_actor_may_host_is_refused(orchestrate, make, bases):
    orchestrator = orchestrate(actors=[{"base_model": str(bases / "tiny-b")}])
    wait_until(lambda: [actor["state"] for actor in orchestrator.actors()] == ["ready"])
    (problem,) = orchestrator.call("check", [make("one").model_dump(mode="json")])
    assert problem["field"] == "base_model"
    assert "gives every one to another base model" in problem["message"]


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
    Path(spec.dataset.path).write_text(good + '{"input_ids": [1, 2}\n')
    (job_id,) = orchestrator.submit(spec)
    orchestrator.submit(make("other", steps=8))
    failed = orchestrator.wait("one", "FAILED")
    assert "17" in failed["reason"]  # the line
    orchestrator.wait("other", "SUCCEEDED")
    Path(spec.dataset.path).write_text(good)
    (Path(spec.output_dir) / "metrics.jsonl").write_text('{"step": 1}\n')
    (Path(spec.output_dir) / "checkpoint-3").mkdir()
    again = orchestrator.call("retry", "one", True)
    assert (again["id"], again["reason"], again["step"]) == (job_id, None, 0)
    done = orchestrator.wait("one", "SUCCEEDED")
    assert steps_of(done) == list(range(1, 9))
    assert done["attempt"] == 2


# -- death -------------------------------------------------------------------------------------------------------------


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
    orchestrator.submit(spec)
    orchestrator.wait("one", "RUNNING", until=checkpointed({"output_dir": spec.output_dir}))
    name = kill("tiny-a@")
    done = orchestrator.wait("one", "SUCCEEDED")
    assert (done["attempt"], done["retries"]) == (2, 1)
    assert any(name in event and "back in the queue" in event for event in orchestrator.events("one"))
    assert steps_of(done) == list(range(1, 151))
    assert name not in processes("tiny-a@")
    whole = spec.model_copy(update={"name": "whole", "output_dir": spec.output_dir + "-whole"})
    orchestrator.submit(whole)
    orchestrator.wait("whole", "SUCCEEDED")
    adapters = [(Path(s.output_dir) / "adapter_model.safetensors").read_bytes() for s in (spec, whole)]
    assert adapters[0] == adapters[1]


def test_a_job_that_keeps_losing_its_actor_fails_in_the_end_and_a_retry_goes_on_from_its_checkpoint(orchestrator, make):
    spec = make("one", steps=600, max_retries=0, save_steps=50)
    orchestrator.submit(spec)
    orchestrator.wait("one", "RUNNING", until=checkpointed({"output_dir": spec.output_dir}))
    kill("tiny-a@")
    failed = orchestrator.wait("one", "FAILED")
    assert "lost its actor 1 times, queue.max_retries is 0" in failed["reason"]
    (checkpoint,) = checkpointed(failed)()
    orchestrator.call("retry", "one")
    assert orchestrator.events("one")[-1] == f"retried: it goes on from {checkpoint.name}"
    done = orchestrator.wait("one", "SUCCEEDED", timeout=120)
    assert (done["attempt"], done["retries"]) == (2, 0)
    assert steps_of(done) == list(range(1, 601))


def test_cancel_wins_when_the_actor_dies_meanwhile(orchestrator, make):
    orchestrator.submit(make("one", steps=LONG))
    orchestrator.wait("one", "RUNNING", until=lambda job: job["step"])
    ((_, pid),) = processes("tiny-a@").items()
    os.kill(pid, signal.SIGSTOP)  # it can take no note any more
    orchestrator.call("cancel", "one")
    os.kill(pid, signal.SIGKILL)
    job = orchestrator.wait("one", "CANCELLED")
    assert not checkpointed(job)()


def test_both_die_at_once(orchestrator, make):
    spec = make("one", steps=150, save_steps=20)
    orchestrator.submit(spec)
    orchestrator.wait("one", "RUNNING", until=checkpointed({"output_dir": spec.output_dir}))
    pids = [orchestrator.call("ping")["pid"], *processes("tiny-a@").values()]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    done = orchestrator.wait("one", "SUCCEEDED")
    assert done["retries"] == 1
    assert steps_of(done) == list(range(1, 151))


def test_a_base_that_cannot_be_loaded_fails_its_jobs_with_the_reason(orchestrator, make, bases, tmp_path):
    import shutil

    shutil.copytree(bases / "tiny-a", tmp_path / "broken")
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    spec = make("one").model_copy(update={"base_model": str(tmp_path / "broken")})
    orchestrator.submit(spec)
    failed = orchestrator.wait("one", "FAILED")
    assert "broken cannot be loaded on cpu:0" in failed["reason"]
    orchestrator.submit(make("good", steps=2))
    orchestrator.wait("good", "SUCCEEDED")


# -- start and end -----------------------------------------------------------------------------------------------------


def test_after_a_shutdown_the_jobs_go_on_where_they_were(orchestrate, make):
    orchestrator = orchestrate()
    spec = make("one", steps=150, save_steps=1000)
    orchestrator.submit(spec)
    orchestrator.wait("one", "RUNNING", until=lambda job: job["step"] > 5)
    stop_orchestrator()
    (checkpoint,) = Path(spec.output_dir).glob("checkpoint-*")
    assert int(checkpoint.name.split("-")[1]) > 5
    orchestrator = orchestrate()
    done = orchestrator.wait("one", "SUCCEEDED")
    assert (done["attempt"], done["retries"]) == (2, 0)
    assert steps_of(done) == list(range(1, 151))


def test_starting_again_attaches_to_the_one_that_runs(orchestrate):
    assert orchestrate().call("ping") == orchestrate().call("ping")


def test_a_storage_in_use_is_refused_in_words(orchestrate, tmp_path):
    from orchestrator.storage_lock import hold

    lock = hold(tmp_path / "storage")
    with pytest.raises(ClusterUnavailableError, match=f"another orchestrator .process {os.getpid()}. uses the storage"):
        orchestrate()
    lock.close()
    assert orchestrate().call("ping")["storage"] == str(tmp_path / "storage")


def test_every_job_is_a_row_of_its_own_in_the_dashboard(orchestrator, make):
    from ray.util.state import list_tasks

    bad = make("row-bad", steps=2)
    Path(bad.dataset.path).write_text("[]\n")
    orchestrator.submit(make("row-good", steps=2, r=8), bad, make("row-long", steps=LONG))
    orchestrator.wait("row-good", "SUCCEEDED")
    orchestrator.wait("row-bad", "FAILED")
    orchestrator.wait("row-long", "RUNNING")
    address = ray.get_runtime_context().gcs_address
    wanted = {
        "lora[row-good] tiny-a r=8": "FINISHED",
        "lora[row-bad] tiny-a r=4": "FAILED",
        "lora[row-long] tiny-a r=4": "RUNNING",
    }

    def rows():
        tasks = list_tasks(address=address, detail=True, limit=10_000)
        found = {task.name: task for task in tasks if task.name.startswith("lora[row-")}
        return found if {name: task.state for name, task in found.items()} == wanted else None

    failed = wait_until(rows, timeout=30)["lora[row-bad] tiny-a r=4"]
    assert orchestrator.call("get_job", "row-bad")["reason"] in failed.error_message
