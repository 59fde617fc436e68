"""An actor pressed to its memory limit on a real Ray cluster, because all that is believed of its memory is too low.

A run without a limit teaches the orchestrator what the base model takes. A new orchestrator then finds in its store
the same with every figure 30 % lower, and a limit that its plan passes if nobody minds it.
"""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpu_actor.contract.config import DatasetConfig, TrainingConfig
from gpu_actor.contract.lora_config import LoraConfig
from orchestrator.control.live_progress import SETTLE_SECONDS
from orchestrator.jobs.job import JobSpec
from orchestrator.store.store import Store
from support.cluster import ONE_CORE, own_orchestrators, stop_orchestrator, wait_until
from support.tiny import tiny_model, token_rows, write_rows

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("ray_cluster")]

TOO_LOW, RIGHT = 0.7, 1.0
BUDGET = 512  # tokens of a shared batch of a new actor on a CPU
ROOM = 0.75  # of them that the limit has room for
STEPS = 5
NAMES = ("a", "b", "c", "d")  # four of their micro-batches make a full shared batch
TOGETHER = {"policy": "fifo-memory", "tick_seconds": 0.1}


def make(name, base, folder, steps=STEPS, samples=1):
    """A job with micro-batches of so many samples of 100 to 127 tokens."""
    data = folder / f"{name}.jsonl"
    write_rows(data, token_rows(16, seed=ord(name[0]), low=100, high=128))
    return JobSpec(
        name=name,
        base_model=str(base),
        dataset=DatasetConfig(path=str(data), format="tokens"),
        lora=LoraConfig(r=4),
        training=TrainingConfig(
            max_steps=steps, per_device_train_batch_size=samples, cutoff_len=128, save_steps=100_000
        ),
        output_dir=str(folder / "out" / name),
    )


def run_all(orchestrator, base, folder):
    """Four jobs to their ends; returns them, the bytes of their adapters, and the actor."""
    orchestrator.submit(*(make(name, base, folder) for name in NAMES))
    done = [orchestrator.wait(name, "SUCCEEDED") for name in NAMES]
    adapters = [Path(job["output_dir"], "adapter_model.safetensors").read_bytes() for job in done]
    return done, adapters, orchestrator.actors()[0]


def profile_of(storage):
    """What was learned of the one place, and its key."""
    store = Store(f"sqlite:///{storage}/loray.db")
    ((key, profile),) = store.profiles().items()
    store.close()
    return key, profile


def peak_of(profile):
    """The predicted peak of a full shared batch, adapters left out."""
    return profile["memory"]["fixed_bytes"] + BUDGET * profile["memory"]["bytes_per_token"]


@pytest.fixture(scope="module")
def learned(ray_cluster, tmp_path_factory):
    """What a run without a limit has shown. Activations are a third of the peak of a full batch."""
    folder = tmp_path_factory.mktemp("free")
    base = folder / "base"
    tiny_model(hidden_size=64, intermediate_size=2048, num_hidden_layers=12).save_pretrained(base)
    with own_orchestrators(folder / "storage") as orchestrate:
        orchestrator = orchestrate(scheduler=TOGETHER)
        _, adapters, actor = run_all(orchestrator, base, folder)
    assert (actor["pressed"], actor["token_budget"]) == (0, BUDGET)
    key, profile = profile_of(folder / "storage")
    assert peak_of(profile) == pytest.approx(actor["memory_peak"], rel=0.1)
    memory = profile["memory"]
    limit = int(memory["fixed_bytes"] + ROOM * BUDGET * memory["bytes_per_token"])
    assert TOO_LOW * peak_of(profile) < limit < peak_of(profile)
    return SimpleNamespace(base=base, key=key, profile=profile, limit=limit, adapters=adapters)


@pytest.fixture
def orchestrate(learned, tmp_path):
    """Starts an orchestrator that believes so much of what was learned, with the limit."""
    with own_orchestrators(tmp_path / "storage") as start:

        def orchestrate(share, scheduler):
            memory = learned.profile["memory"]
            believed = {name: share * memory[name] for name in ("fixed_bytes", "bytes_per_token")}
            profile = {**learned.profile, "memory": {**memory, **believed}, "margin": share * learned.profile["margin"]}
            (tmp_path / "storage").mkdir()
            store = Store(f"sqlite:///{tmp_path}/storage/loray.db")
            store.save_profiles({learned.key: profile})
            store.close()
            return start(actors=[{**ONE_CORE, "memory_limit": learned.limit}], scheduler=scheduler)

        yield orchestrate


@pytest.mark.timeout(600)
@pytest.mark.parametrize("share", [TOO_LOW, RIGHT])
def test_an_actor_that_is_pressed_makes_smaller_batches_and_every_adapter_is_what_it_would_have_been(
    orchestrate, learned, tmp_path, share
):
    """By the right prediction the actor gets a smaller budget before it trains; by the low one all four fit at once."""
    done, adapters, actor = run_all(orchestrate(share, TOGETHER), learned.base, tmp_path)
    assert [(job["attempt"], job["retries"], job["step"]) for job in done] == [(1, 0, STEPS)] * 4
    assert adapters == learned.adapters
    assert actor["token_budget"] < BUDGET
    if share == RIGHT:
        assert actor["pressed"] == 0
        assert actor["memory_peak"] <= learned.limit
        return
    assert actor["pressed"] > 0
    assert actor["memory_peak"] > learned.limit
    assert actor["batch_tokens"] <= actor["token_budget"]
    stop_orchestrator()
    _, corrected = profile_of(tmp_path / "storage")
    assert peak_of(corrected) == pytest.approx(peak_of(learned.profile), rel=0.15)


@pytest.mark.timeout(600)
def test_a_job_that_turns_out_too_large_for_every_actor_goes_on_in_smaller_batches(orchestrate, learned, tmp_path):
    """Its micro-batches fill the budget. Once that is known, taking it off would be to place it nowhere again."""
    orchestrator = orchestrate(TOO_LOW, {"tick_seconds": 0.1})
    orchestrator.submit(make("wide", learned.base, tmp_path, steps=100_000, samples=4))
    orchestrator.wait("wide", "RUNNING", until=lambda job: job["step"] > 0)
    wait_until(lambda: orchestrator.actors()[0]["pressed"])
    time.sleep(SETTLE_SECONDS + 1)  # from then on it may be taken off
    before = orchestrator.call("get_job", "wide")["step"]
    job = orchestrator.wait("wide", "RUNNING", until=lambda job: job["step"] > before + 1)
    assert job["attempt"] == 1
    orchestrator.call("cancel", "wide")
    orchestrator.wait("wide", "CANCELLED")
