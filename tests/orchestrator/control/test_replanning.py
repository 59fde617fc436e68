"""What the orchestrator plans and does for actors whose reports are written by hand: real store, no Ray."""

from dataclasses import replace

import pytest

from gpu_actor.contract.orders import Attach
from gpu_actor.contract.report import StepSample, TenantReport, TenantState
from orchestrator.control import replanning
from orchestrator.control.admission import _misfits
from orchestrator.jobs.states import JobState
from orchestrator.scheduler.estimate import MemoryFit, SpeedFit
from orchestrator.scheduler.forecast import forecast
from orchestrator.scheduler.view import Plan, SpeedModel
from orchestrator.store.records import Wish
from support.house import TINY, House, describe

X = "tiny@cpu:0#0000"


def test_an_idle_actor_whose_base_model_nobody_measured_holds_up_no_other_base(tmp_path):
    """Its only job failed on its data, so there is no profile; it has no job, so nobody describes its base model."""
    house = House(tmp_path)
    house.host(X)
    bad = house.submit("bad")
    house.store.assign(bad, X, "boot")
    house.report(X, TenantReport(bad, 1, TenantState.FAILED, reason="line 3"))
    house.describe("/models/other")
    other = house.submit("other", base_model="/models/other")
    plan = house.plan()
    assert plan.rehosts == {"cpu:0": "/models/other"}
    assert set(plan.waiting) == {other}


def test_a_cluster_without_a_job_has_a_plan(tmp_path):
    house = House(tmp_path, actors=[{"base_model": TINY}])
    house.host(X, described=False)
    house.report(X)
    assert house.plan().rehosts == {}


@pytest.mark.parametrize(("wish", "returns"), [(wish, wish is Wish.YIELD) for wish in Wish])
def test_a_job_that_was_told_to_go_is_seen_as_leaving(tmp_path, wish, returns):
    house = House(tmp_path)
    house.host(X)
    job = house.submit("a")
    house.store.assign(job, X, "boot")
    house.report(X, TenantReport(job, 1, TenantState.TRAINING, step=3, total_steps=9))
    before = house.reconciler.snapshot()
    assert (before.view.jobs[0].leaving, before.view.jobs[0].returns) == (False, True)
    house.store.wish(job, wish, "asked")
    after = house.reconciler.snapshot()
    job = after.view.jobs[0]
    assert (job.actor, job.leaving, job.returns) == ("cpu:0", True, returns)
    assert after.differs(before)


def test_the_forecast_takes_those_who_leave_for_gone(tmp_path):
    house = House(tmp_path)
    house.host(X)
    for name, wish in (("back", Wish.YIELD), ("gone", Wish.CANCEL)):
        job = house.submit(name, max_steps=50)
        house.store.assign(job, X, "boot")
        house.store.wish(job, wish, "asked")
    house.report(X)
    view = house.reconciler.snapshot().view
    found = {one.job.id: one for one in forecast(view).values()}
    assert [found[job.id].place for job in view.jobs if job.returns] == ["cpu:0"]
    assert len(found) == 1


MIB = 2**20
FIXED, LIMIT = 500 * MIB, 592 * MIB
PER_TOKEN = 1312  # as guessed of the base model


def shared_steps(jobs, adapters):
    """Measured steps of an actor whose memory is exactly known, with its speed far from saturated."""
    sizes = (200, 400, 600, 900)
    return tuple(
        StepSample(n, 0, jobs, 3.0 + 0.0005 * n, FIXED + PER_TOKEN * max(sizes[: i + 1]) + adapters, adapters)
        for i, n in enumerate(sizes)
    )


class BusyHouse(House):
    """With one actor, which reports a token budget and, now and then, the steps that it made."""

    def report_steps(self, budget, *, steps=False):
        adapters = self.snapshots.adapter_bytes(self.store.get(self.job), describe(), "cpu")
        self.report(
            X,
            TenantReport(self.job, 1, TenantState.TRAINING, step=3, total_steps=9),
            memory_limit=LIMIT,
            memory_idle=FIXED,
            token_budget=budget,
            steps=shared_steps(1, adapters) if steps else (),
        )


@pytest.fixture
def busy(tmp_path):
    """One actor with a large job `a`; its memory and speed were measured."""
    house = BusyHouse(tmp_path, policy="fifo-memory", actors=[{"memory_limit": LIMIT}])
    house.host(X)
    house.job = house.submit("a", r=4096, cutoff_len=64, per_device_train_batch_size=1)
    house.store.assign(house.job, X, "boot")
    for _ in range(10):
        house.report_steps(1024, steps=True)
        house.learn()
    house.profiles.of(house.fleet.members[X].place, TINY).speed = SpeedFit(SpeedModel(3.0, 0.0005, 0.01))
    return house


def test_the_token_budget_is_what_all_adapters_of_an_actor_leave_in_every_tick(busy):
    """Whether or not a step ended since the last tick."""
    base = describe()
    adapters = busy.snapshots.adapter_bytes(busy.store.get(busy.job), base, "cpu")
    assert adapters > 20 * MIB
    budget, budgets = 1024, []
    for tick in range(12):
        busy.report_steps(budget, steps=tick % 2 == 0)
        busy.learn()
        for instruction in busy.token_budgets():
            budget = instruction.order.tokens
            budgets.append(budget)
    assert budgets == [1800]  # twice the largest measured batch
    assert FIXED + adapters + PER_TOKEN * budget <= LIMIT


def test_an_actor_makes_room_before_a_further_job_comes(busy):
    """A budget that fills the memory beside one adapter does not beside three; the plan counts the least budget."""
    base = describe()
    for name in ("b", "c"):
        busy.submit(name, r=4096, cutoff_len=64, per_device_train_batch_size=1)
    busy.profiles.of(busy.fleet.members[X].place, TINY).largest = 60_000
    busy.report_steps(1024)
    (instruction,) = busy.token_budgets()
    large = instruction.order.tokens
    assert large > 30_000
    busy.report_steps(large)
    plan = busy.plan()
    assert len(plan.placements) == 2
    orders = [instruction.order for instruction in busy.carry_out(plan)]
    assert sum(isinstance(order, Attach) for order in orders) == 2
    (instruction,) = busy.token_budgets()
    budget = instruction.order.tokens
    adapters = sum(busy.snapshots.adapter_bytes(job, base, "cpu") for job in busy.store.jobs())
    assert FIXED + adapters + PER_TOKEN * large > LIMIT
    assert FIXED + adapters + PER_TOKEN * budget <= LIMIT
    assert budget >= 1024


def test_a_job_that_has_trained_waits_when_the_fit_has_drifted(busy):
    """It was taken off at step 2000 of 3000, and the fit of what does not grow with tokens has grown since."""
    job = busy.store.get(busy.job)
    busy.store.move(job.id, JobState.QUEUED, "taken off", progress={"step": 2000, "total_steps": 3000})
    fresh = busy.submit("fresh", r=4096, cutoff_len=64, per_device_train_batch_size=1)
    fit = busy.profiles.of(busy.fleet.members[X].place, TINY)
    fit.memory = MemoryFit(replace(fit.memory.model, fixed_bytes=LIMIT - 5 * MIB))
    plan = busy.plan()
    assert (set(plan.rejections), set(plan.waiting)) == ({fresh}, {job.id})
    busy.carry_out(plan)
    assert (busy.store.get(job.id).state, busy.store.get(fresh).state) == (JobState.QUEUED, JobState.FAILED)
    assert f"the roomiest actor may use 592.0 MiB ({LIMIT} bytes)" in busy.store.get(job.id).waiting_for


def test_at_submission_the_measurement_alone_decides(busy):
    """Nothing has been accepted yet, so nothing can be lost; a job that would wait for ever is refused at once."""
    spec = busy.store.get(busy.job).spec
    places = busy.snapshots.places(describe())
    assert _misfits(spec, describe(), places) == []
    fit = busy.profiles.of(busy.fleet.members[X].place, TINY)
    fit.memory = MemoryFit(replace(fit.memory.model, fixed_bytes=LIMIT - 5 * MIB))
    (problem,) = _misfits(spec, describe(), busy.snapshots.places(describe()))
    assert f"({LIMIT} bytes)" in problem.message


@pytest.fixture
def dear(tmp_path, monkeypatch):
    """One actor, and full plans that take so long that each stands for a while; how many were made is counted."""
    made = []

    def counted(make):
        def plan(*arguments):
            made.append(make.__name__)
            return make(*arguments)

        return plan

    monkeypatch.setattr(replanning, "IncrementalPlan", counted(replanning.IncrementalPlan))
    monkeypatch.setattr(replanning, "decide", counted(replanning.decide))
    monkeypatch.setattr(replanning, "_CHEAP_SECONDS", 0.0)
    monkeypatch.setattr(replanning, "_PAUSE", 1e9)
    house = House(tmp_path, policy="fifo")
    house.host(X)
    house.report(X)
    house.made, house.clock = made, monkeypatch
    house.reconciler._replanner._pause = 1e9  # as after a first plan, which showed it
    return house


def tick(house):
    plan = house.plan()
    house.carry_out(plan)
    return plan


def test_while_a_dear_plan_stands_ends_and_arrivals_are_answered_without_another(dear):
    first, second = dear.submit("first"), dear.submit("second")
    assert list(tick(dear).placements) == [first]
    third = dear.submit("third")
    dear.report(X, TenantReport(first, 1, TenantState.TRAINING, step=3, total_steps=9, longest=5))
    assert tick(dear) == Plan()  # the start of the first and the arrival of the third ask for nothing
    dear.report(X, TenantReport(first, 1, TenantState.SUCCEEDED, step=9, total_steps=9))
    plan = tick(dear)
    assert (plan.placements, plan.order) == ({second: "cpu:0"}, {"cpu:0": (second,)})
    assert dear.store.get(second).state is JobState.RUNNING
    dear.store.move(second, JobState.FAILED, "failed")
    dear.report(X)
    assert tick(dear).placements == {third: "cpu:0"}
    assert dear.made == ["IncrementalPlan"]


def test_a_dear_plan_is_made_anew_when_its_time_is_over_or_more_happens(dear):
    first, second = dear.submit("first"), dear.submit("second")
    tick(dear)
    third = dear.submit("third")
    tick(dear)
    assert dear.store.get(third).waiting_for == "the next look at the cluster"
    dear.reconciler._replanner._pause = 0.0
    assert set(tick(dear).waiting) == {second, third}
    assert "has its share" in dear.store.get(third).waiting_for
    assert tick(dear) == Plan()
    assert len(dear.made) == 2
    dear.reconciler._replanner._pause = 1e9
    del dear.fleet.members[X]
    dear.reconciler.observe()
    dear.plan()
    assert dear.store.get(first).state is JobState.QUEUED
    assert len(dear.made) == 3


def test_while_a_plan_is_cheap_every_event_makes_one(dear):
    dear.clock.setattr(replanning, "_CHEAP_SECONDS", 10.0)
    dear.reconciler._replanner._pause = 0.0
    tick(dear)
    for number in range(3):
        dear.submit(f"j{number}")
        tick(dear)
    assert dear.made == ["decide"] * 4


def test_the_first_dear_plan_is_followed_by_one_that_answers(dear):
    dear.reconciler._replanner._pause = 0.0
    first, second = dear.submit("first"), dear.submit("second")
    assert list(tick(dear).placements) == [first]
    dear.submit("third")
    tick(dear)
    assert dear.made == ["decide", "IncrementalPlan"]
    dear.report(X, TenantReport(first, 1, TenantState.SUCCEEDED, step=9, total_steps=9))
    assert tick(dear).placements == {second: "cpu:0"}
    assert len(dear.made) == 2


def test_a_job_that_needs_more_than_before_asks_for_a_full_plan(dear):
    dear.submit("a", max_steps=50)
    tick(dear)
    before = dear.reconciler.snapshot()
    size = before.view.jobs[0].adapter_bytes
    for more, answered in ((0, True), (-1, True), (1, False)):
        changed = replace(before.view.jobs[0], adapter_bytes=size + more)
        events = replace(before, view=replace(before.view, jobs=(changed,))).events(before)
        assert (events is not None) == answered
    assert before.events(before).started == {}
