"""Jobs that were admitted on too low a prediction: what plans count of them once the truth is measured."""

from dataclasses import replace

import pytest

from gpu_actor.contract.description import BaseDescription, LinearShape
from gpu_actor.contract.report import StepSample, TenantReport, TenantState
from orchestrator.control.live_progress import SETTLE_SECONDS, SETTLE_STEPS
from orchestrator.jobs.states import JobState
from orchestrator.scheduler.estimate import MemoryFit
from orchestrator.scheduler.oversized_jobs import fit_oversized_jobs
from orchestrator.scheduler.policy import decide
from orchestrator.scheduler.view import (
    ActorShape,
    ActorState,
    ActorView,
    ClusterView,
    JobView,
    MemoryModel,
)
from support.house import TINY, House

X = "tiny@cpu:0#0000"
MIB = 2**20
IDLE, LIMIT, PER_TOKEN = 500 * MIB, 600 * MIB, 200 * 1024  # half of the room holds 256 tokens


def place(name="p", limit=1000, pinned=None, fixed=500.0, cap=40):
    memories = {"b": MemoryModel(fixed, 5.0, cap)}
    shape = ActorShape("cpu", 1024)
    return ActorView(name, name, ActorState.READY, shape, "b", pinned, limit, memories=memories)


def job(adapter=100, worst=90, started=True):
    return JobView("j", "b", 0, 0, adapter, worst, actor="p", movable=True, started=started)


@pytest.mark.parametrize(
    ("there", "places"),
    [
        (job(worst=80), [place()]),  # 500 + 100 + 5 * 80: it just fits
        (job(started=False), [place()]),  # one that has never started is refused, or waits
        (job(), [place(), place("q", limit=1050)]),
        (job(), [place(), place("q", limit=None)]),
        (job(), [place("q", pinned="other")]),
        (job(), []),
    ],
)
def test_a_job_counts_in_full_where_it_fits_or_has_not_started(there, places):
    assert fit_oversized_jobs([there], places, {}) == (there,)


def test_a_job_that_has_started_and_fits_nowhere_counts_with_the_micro_batches_of_the_roomiest_place():
    places = [place(), place("q", cap=50, fixed=520.0), place("r", pinned="other", limit=2000)]
    (fitted,) = fit_oversized_jobs([job()], places, {})
    assert fitted == replace(job(), worst_tokens=40)


def test_an_adapter_that_is_too_large_by_itself_is_not_taken_off():
    (fitted,) = fit_oversized_jobs([job(adapter=301)], [place()], {})
    assert fitted == replace(job(adapter=301), movable=False)


@pytest.mark.parametrize(("limit", "starts"), [(900 * MIB, True), (700 * MIB, False)])
def test_a_fit_that_wavers_keeps_nobody_waiting_who_has_run(limit, starts):
    """By the fit 50 MiB are left beside the base model, for an adapter of 60; by the guess 260, or too few as well.

    One that has never run is not put to the test.
    """
    base = BaseDescription("b", "llama", (LinearShape("model.layers.0.q_proj", 64, 64),), 64, 1, 128, 1000)
    there = place(limit=limit, fixed=limit - 50 * MIB)
    for started in (True, False):
        seen = replace(job(60 * MIB, started=started), actor=None)
        (fitted,) = fit_oversized_jobs([seen], [there], {"b": base})
        plan = decide(ClusterView((fitted,), (there,), {"b": base}, now=0.0))
        assert (plan.placements == {"j": "p"}) == (starts and started)
        assert not (started and plan.rejections)


def pressed_house(folder, **actor):
    """Under the default policy: a job with micro-batches of 1024 tokens in training, and the measured truth."""
    house = House(folder, actors=[{"memory_limit": LIMIT, **actor}])
    house.host(X)
    house.job = house.submit("wide", cutoff_len=512, per_device_train_batch_size=2)
    house.store.assign(house.job, X, "boot")
    steps = (StepSample(400, 0, 1, 1.0, IDLE + PER_TOKEN * 400, 0),)
    training = TenantReport(house.job, 1, TenantState.TRAINING, step=3, total_steps=90, longest=512)
    house.report(X, training, memory_limit=LIMIT, memory_idle=IDLE, token_budget=300, memory_shortages=1, steps=steps)
    house.learn()
    house.profiles.of(house.fleet.members[X].place, TINY).memory = MemoryFit(MemoryModel(IDLE, PER_TOKEN, 1024))
    return house


@pytest.fixture
def house(tmp_path):
    return pressed_house(tmp_path)


def settle(house):
    """It has trained for long enough to be movable."""
    begun = house.reconciler.progress._begun
    for key, begin in begun.items():
        begun[key] = replace(begin, monotonic=begin.monotonic - SETTLE_SECONDS, step=begin.step - SETTLE_STEPS)


def test_a_running_job_that_turns_out_too_large_for_every_place_stays(house):
    settle(house)
    (job,) = house.reconciler.snapshot().view.jobs
    assert job.movable
    assert job.worst_tokens < 1024
    plan = house.plan()
    assert (plan.preemptions, plan.moves, plan.waiting) == ({}, {}, {})


def test_and_goes_on_when_its_actor_was_lost(house):
    house.store.move(house.job, JobState.QUEUED, "lost", progress={"step": 3, "total_steps": 90, "longest": 512})
    assert house.plan().placements == {house.job: "cpu:0"}


def test_a_new_job_of_the_same_size_is_refused_and_one_of_small_micro_batches_is_not(house):
    """Where memory is short, half of the room is for shared batches; the actor's budget is lowered to what is left."""
    large = house.submit("large", cutoff_len=512, per_device_train_batch_size=2)
    small = house.submit("small", cutoff_len=100, per_device_train_batch_size=2)
    view = house.reconciler.snapshot().view
    assert view.actors[0].memories[TINY].token_cap == pytest.approx(256, rel=0.1)
    plan = house.plan()
    assert set(plan.rejections) == {large}
    assert small in {**plan.placements, **plan.waiting}
    assert f"({LIMIT} bytes)" in plan.rejections[large]


def test_an_actor_is_not_told_again_what_it_cannot_keep_to(tmp_path):
    """The cluster file wants 1024 tokens, the fit has room for 460, the actor takes 300 after a shortage."""
    house = pressed_house(tmp_path, token_budget=1024)
    first, *later = [house.token_budgets() for _ in range(3)]
    assert later == [[], []]
    (instruction,) = first
    assert 300 < instruction.order.tokens < 512
