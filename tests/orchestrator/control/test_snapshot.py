"""A snapshot of the cluster is cheap: one is made twice a second, in the event loop that answers everybody."""

import asyncio
import json
import threading

import pytest

from gpu_actor.contract.config import EarlyStopConfig
from orchestrator.control import job_needs
from orchestrator.jobs.states import JobState
from orchestrator.knowledge import data_size
from support.house import House


@pytest.fixture
def house(tmp_path):
    house = House(tmp_path)
    house.describe("/models/tiny")
    return house


@pytest.fixture
def counted(monkeypatch):
    """Calls of the two slow parts, with the thread they came from."""
    calls = {"_guess": [], "adapter_bytes": []}
    for module, name in zip((data_size, job_needs), calls, strict=True):
        original = getattr(module, name)

        def counting(*arguments, name=name, original=original):
            calls[name].append(threading.get_ident())
            return original(*arguments)

        monkeypatch.setattr(module, name, counting)
    return calls


def test_a_job_of_which_nothing_changes_is_the_same_value_in_every_snapshot(house, counted):
    for name in "abc":
        house.submit(name)
    first, second = (house.reconciler.snapshot().view for _ in range(2))
    assert all(one is other for one, other in zip(first.jobs, second.jobs, strict=True))
    assert (len(counted["_guess"]), len(counted["adapter_bytes"])) == (3, 1)  # one adapter's settings for all


def test_a_job_that_changes_is_seen_as_it_is(house):
    job = house.submit("a", max_steps=50)
    seen = [house.reconciler.snapshot().view.jobs[0]]
    house.store.set_progress({job: {"step": 7, "total_steps": 40, "longest": 9, "tokens_per_step": 12.5}})
    seen.append(house.reconciler.snapshot().view.jobs[0])
    house.host("x@cpu:0#0000")
    house.store.assign(job, "x@cpu:0#0000", "boot")
    seen.append(house.reconciler.snapshot().view.jobs[0])
    house.store.move(job, JobState.QUEUED, "taken off")
    seen.append(house.reconciler.snapshot().view.jobs[0])
    assert [(view.steps_left, view.actor) for view in seen] == [(50, None), (33, None), (33, "cpu:0"), (33, None)]
    assert seen[1].worst_tokens < seen[0].worst_tokens
    assert seen[3].queued_at > seen[2].queued_at


def test_a_job_of_a_halved_grid_counts_with_the_steps_that_it_makes_on_average(house):
    job = house.submit("a", max_steps=80)
    record, rules = house.store.get(job), EarlyStopConfig(halving_steps=10, halving_keep=0.5, group="g")
    spec = record.spec.model_copy(update={"name": "b", "output_dir": record.spec.output_dir + "b", "early_stop": rules})
    house.store.add([spec], "request")
    views = house.reconciler.snapshot().view.jobs
    assert [(view.steps_left, view.steps_total) for view in views] == [(80, 80), (25, 80)]


def test_new_data_files_are_read_in_a_thread_once_for_a_grid(house, counted, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"input_ids": [1] * 8, "labels": [1] * 8}) + "\n" for _ in range(10)))
    ids = [house.submit(name, data=data, per_device_train_batch_size=1) for name in "abc"]
    asyncio.run(house.snapshots.prepare())
    assert len(counted["_guess"]) == 1
    assert counted["_guess"][0] != threading.get_ident()
    data.unlink()
    views = house.reconciler.snapshot().view.jobs
    assert [view.id for view in views] == ids
    assert {view.tokens for view in views} == {8}
    asyncio.run(house.snapshots.prepare())
    assert len(counted["_guess"]) == 1
