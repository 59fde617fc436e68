"""The scheduler's decisions carried out on a real Ray cluster, with the real engine on tiny random models."""

import time
from pathlib import Path

import pytest

from gpu_actor.adapters.shapes import adapter_bytes
from gpu_actor.contract.config import DatasetConfig, EarlyStopConfig, LoraConfig, TrainingConfig
from gpu_actor.model.describe import describe_base
from orchestrator.control.live_progress import SETTLE_SECONDS
from orchestrator.jobs.job import JobSpec, QueueConfig
from orchestrator.store.store import Store
from support.cluster import LONG, ONE_CORE, PATIENCE, own_orchestrators, stop_orchestrator, wait_until
from support.tiny import token_rows, write_rows

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("ray_cluster")]


@pytest.fixture
def orchestrate(ray_cluster, tmp_path):
    """Under the default policy."""
    with own_orchestrators(tmp_path / "storage") as orchestrate:
        yield orchestrate


@pytest.fixture
def make(tmp_path, bases):
    """Makes a job that writes no checkpoints but those for leaving its actor."""

    def make(name, steps=4, base="tiny-a", priority=0, lora=None, early_stop=None, rows=None, **training):
        data = tmp_path / "data" / f"{name}.jsonl"
        data.parent.mkdir(exist_ok=True)
        write_rows(data, rows or token_rows(16, seed=3))
        settings = {"max_steps": steps, "per_device_train_batch_size": 2, "cutoff_len": 64, "save_steps": 1000}
        return JobSpec(
            name=name,
            base_model=str(bases / base),
            dataset=DatasetConfig(path=str(data), format="tokens"),
            lora=LoraConfig(**(lora or {"r": 4})),
            training=TrainingConfig(**{**settings, **training}),
            early_stop=EarlyStopConfig(**(early_stop or {})),
            queue=QueueConfig(priority=priority),
            output_dir=str(tmp_path / "out" / name),
        )

    return make


def adapter_of(spec):
    return Path(spec.output_dir, "adapter_model.safetensors").read_bytes()


def uninterrupted(spec, folder):
    """The adapter that the engine makes of a job in this process, alone and without a break."""
    import torch

    from gpu_actor.model.base_model import BaseModel
    from support.engine import make_tenant, run_all

    torch.set_num_threads(1)
    alone = spec.model_copy(update={"output_dir": str(folder)})
    base = BaseModel.load(spec.base_model)
    run_all(base, [make_tenant(base, alone.to_adapter_spec("alone"))])
    return adapter_of(alone)


@pytest.mark.timeout(600)
def test_a_job_that_was_taken_off_and_went_on_elsewhere_equals_the_uninterrupted_run(
    orchestrate, make, tmp_path, bases
):
    """One job per actor: urgent ones take both, and the long job goes on where the shorter of them ends first."""
    place = {**ONE_CORE, "base_model": str(bases / "tiny-a")}  # so both are there from the start
    orchestrator = orchestrate(actors=[place, place], scheduler={"policy": "srpt", "tick_seconds": 0.1})
    wait_until(lambda: [actor["state"] for actor in orchestrator.actors()] == ["ready"] * 2)
    (problem,) = orchestrator.call("check", [make("other", base="tiny-b").model_dump(mode="json")])
    assert problem["field"] == "base_model"
    assert "gives every one to another base model" in problem["message"]
    orchestrator.submit(make("pace", steps=200))
    orchestrator.wait("pace", "SUCCEEDED")
    times = [row["time"] for row in orchestrator.call("metrics", "pace", 10)]
    # long enough to be there when it has settled and the others have come, and no longer: it is run twice
    steps = int(4 * SETTLE_SECONDS * len(times) / (times[-1] - times[0]))
    moved = make("moved", steps=steps)
    orchestrator.submit(moved)
    orchestrator.wait("moved", "RUNNING", until=lambda job: job["step"] > 5)
    time.sleep(SETTLE_SECONDS)
    orchestrator.submit(make("first", steps=300, priority=9), make("stays", steps=LONG, priority=9))
    done = orchestrator.wait("moved", "SUCCEEDED", timeout=1.5 * PATIENCE)
    events = orchestrator.events("moved")
    assert sum(event.startswith("is taken off") for event in events) == 1
    assert len({event.split()[2] for event in events if event.startswith("assigned to")}) == 2
    assert (done["attempt"], done["retries"], done["step"]) == (2, 0, steps)
    orchestrator.call("cancel", "stays")
    assert adapter_of(moved) == uninterrupted(moved, tmp_path / "alone")


@pytest.mark.timeout(600)
def test_the_default_policy_changes_a_base_model_for_an_urgent_job_and_the_other_goes_on_after_it(orchestrate, make):
    """The one actor is emptied, changes, and changes back; the long job leaves it once."""
    orchestrator = orchestrate()
    assert orchestrator.call("cluster")["controller"]["policy"] == "cosrpt"
    orchestrator.submit(make("long", steps=LONG))
    orchestrator.wait("long", "RUNNING", until=lambda job: job["step"] > 5)
    orchestrator.submit(make("urgent", steps=5, base="tiny-b", priority=9))
    orchestrator.wait("urgent", "SUCCEEDED")
    before = orchestrator.call("get_job", "long")["step"]
    orchestrator.wait("long", "RUNNING", until=lambda job: job["step"] > max(5, before))
    events = orchestrator.events("long")
    assert sum(event.startswith("is taken off") for event in events) == 1
    assert sum(event.startswith("assigned to") for event in events) == 2
    orchestrator.call("cancel", "long")
    wait_until(lambda: not orchestrator.live())


def the_profile(folder):
    """All that the store of an orchestrator that was stopped holds of its one place and base model."""
    store = Store(f"sqlite:///{folder}/storage/loray.db")
    ((key, profile),) = store.profiles().items()
    store.close()
    assert key.endswith("tiny-a")
    return profile


@pytest.mark.timeout(600)
def test_what_was_learned_survives_a_restart_and_a_job_too_large_for_now_waits_until_room_appears(
    orchestrate, make, tmp_path, bases
):
    orchestrator = orchestrate()
    orchestrator.submit(make("probe", steps=60))
    orchestrator.wait("probe", "SUCCEEDED")
    idle = orchestrator.actors()[0]["memory_peak"]
    stop_orchestrator()
    learned = the_profile(tmp_path)
    assert learned["samples"] > 10
    assert learned["speed"]["step_seconds"] > 0
    assert learned["memory"]["fixed_bytes"] > 2**27
    own = adapter_bytes(describe_base(str(bases / "tiny-a")), LoraConfig(r=4096))
    limit = idle + int(1.6 * own)
    orchestrator = orchestrate(actors=[{**ONE_CORE, "memory_limit": limit}], scheduler={"policy": "fifo-memory"})
    large = {"r": 4096}
    orchestrator.submit(make("first", steps=LONG, lora=large), make("second", steps=3, lora=large))
    orchestrator.submit(make("urgent", steps=LONG, lora=large, priority=5))
    waiting = orchestrator.wait("second", "QUEUED", until=lambda job: "needs" in (job["waiting_for"] or ""))
    assert "GiB" in waiting["waiting_for"] or "MiB" in waiting["waiting_for"]
    giant = make("giant", lora=large, cutoff_len=1_000_000)
    (problem,) = orchestrator.call("check", [giant.model_dump(mode="json")])
    assert f"({limit} bytes)" in problem["message"]
    orchestrator.call("cancel", "first")
    orchestrator.wait("urgent", "RUNNING")  # it came last, and goes first
    assert orchestrator.call("get_job", "second")["state"] == "QUEUED"
    orchestrator.call("cancel", "urgent")
    orchestrator.wait("second", "SUCCEEDED")
    stop_orchestrator()
    assert the_profile(tmp_path)["samples"] > learned["samples"]


@pytest.mark.timeout(600)
def test_the_worse_half_of_a_grid_stops_at_its_rung_with_its_adapter(orchestrator, make):
    rules = {"halving_steps": 20, "group": "grid"}
    grid = [
        make(f"g{n}", steps=4000, early_stop=rules, learning_rate=rate, lr_scheduler_type="constant")
        for n, rate in enumerate((1e-3, 1e-7))
    ]
    orchestrator.submit(*grid)
    stopped = orchestrator.wait("g1", "SUCCEEDED")
    assert stopped["step"] < 4000
    assert "is number 2 of 2, and 1 pass" in stopped["reason"]
    assert adapter_of(grid[1])
    orchestrator.wait("g0", "RUNNING", until=lambda job: job["step"] > 100)
    orchestrator.call("cancel", "g0")
