"""Who is charged with the death of an actor: real store and planner, reports and deaths written by hand, no Ray."""

import time

import pytest

from gpu_actor.contract.report import ActorPhase, ActorReport, TenantReport, TenantState
from orchestrator.cluster.member import Loss, LossKind
from orchestrator.control import job_verbs
from orchestrator.jobs.losses import NONE
from orchestrator.jobs.states import JobState
from orchestrator.scheduler.policy import DEFAULT
from orchestrator.scheduler.view import Plan
from orchestrator.store.records import Wish
from support.house import TINY
from support.house import House as Empty


class House(Empty):
    """Actors that are started, get what is planned for them, and die, on a clock that is set by hand."""

    def __init__(self, folder, monkeypatch, actors=1, policy="fifo-memory"):
        self.now = time.time()
        monkeypatch.setattr(time, "time", lambda: self.now)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        super().__init__(folder, policy=policy, actors=[{}] * actors)
        self.places = [f"cpu:{number}" for number in range(actors)]
        self.number = 0

    def submit(self, name, max_retries=2, **fields):
        return super().submit(name, max_retries=max_retries, **fields)

    def round(self):
        """A few seconds pass, and one plan is made and carried out; returns the names of the jobs by place."""
        self.now += 300.0  # nobody waits for longer before a new try
        for place in self.places:
            if self.fleet.at(place) is None:
                self.number += 1
                self.host(f"tiny@{place}#{self.number:04x}", place)
                self.report(self.fleet.at(place).name)
        self.carry_out(self.plan())
        self.tell()
        return {place: sorted(job.name for job in jobs.values()) for place, jobs in self.on_places().items() if jobs}

    def tell(self, step=3):
        """Every actor reports that its jobs train."""
        for place, jobs in self.on_places().items():
            tenants = [
                TenantReport(j.id, j.attempt, TenantState.DETACHED if j.wish else TenantState.TRAINING, step, 99)
                for j in jobs.values()
            ]
            self.report(self.fleet.at(place).name, *tenants)

    def train_on(self):
        """Every job comes further, and stays longer, than when an actor was lost; who is to leave leaves."""
        self.now += 100.0
        for _ in range(2):
            self.tell(step=50)

    def on_places(self):
        running = self.reconciler.running()
        return {place: running.get(self.fleet.at(place).name, {}) for place in self.places if self.fleet.at(place)}

    def die(self, place="cpu:0", kind=LossKind.DIED):
        """The actor in a place is lost a second later."""
        self.now += 1.0
        member = self.fleet.at(place)
        del self.fleet.members[member.name]
        self.reconciler.actor_lost(Loss(member.name, place, member.base_model, kind, "its process died: killed"))

    def jobs(self):
        return {job.name: job for job in self.store.jobs()}


@pytest.fixture
def house(tmp_path, monkeypatch):
    return House(tmp_path, monkeypatch)


def kill_while_it_is_there(house, name, rounds=20):
    """Every actor that has a job dies under it; returns how many have."""
    deaths = 0
    for _ in range(rounds):
        if house.jobs()[name].state is JobState.FAILED:
            return deaths
        for place, names in house.round().items():
            if name in names:
                house.die(place)
                deaths += 1
        house.train_on()
    raise AssertionError(f"{name} was never found out")


@pytest.mark.parametrize(("others", "actors"), [(0, 1), (1, 1), (5, 1), (3, 2)])
def test_a_job_that_kills_its_actors_is_found_out_and_nobody_else_is_charged(tmp_path, monkeypatch, others, actors):
    house = House(tmp_path, monkeypatch, actors)
    for number in range(others):
        house.submit(f"good{number}")
    house.submit("bad")
    assert kill_while_it_is_there(house, "bad") == 3
    jobs = house.jobs()
    assert "no other job on it" in jobs["bad"].reason
    assert "its process died: killed" in jobs["bad"].reason
    assert "loray retry" in jobs["bad"].reason
    assert jobs["bad"].retries == 1
    house.round()
    for name, job in house.jobs().items():
        if name != "bad":
            assert (job.state, job.retries, job.losses) == (JobState.RUNNING, 0, NONE)


def test_a_retry_is_counted_when_an_actor_is_lost_and_not_when_a_job_makes_room_later(house):
    """A job that has lost an actor may be given to others often after that: only the loss is a retry."""
    for name in ("a", "paused"):
        house.submit(name)
    house.round()
    job_verbs.pause(house.store, house.jobs()["paused"])
    house.die()
    assert [job.name for job in house.retried] == ["a"]
    house.round()
    house.carry_out(Plan(preemptions={house.jobs()["a"].id: "a shorter job goes first"}))
    house.tell()
    assert house.jobs()["a"].state is JobState.QUEUED
    assert house.jobs()["a"].losses != NONE
    house.round()
    assert house.jobs()["a"].state is JobState.RUNNING
    assert len(house.retried) == 1


def test_suspects_are_tried_alone_one_after_the_other_while_others_train_elsewhere(tmp_path, monkeypatch):
    house = House(tmp_path, monkeypatch, actors=2)
    for name in "abcd":
        house.submit(name)
    assert house.round() == {"cpu:0": ["a", "c"], "cpu:1": ["b", "d"]}
    house.die("cpu:0")
    assert house.round() == {"cpu:0": ["a", "c"], "cpu:1": ["b", "d"]}
    house.die("cpu:0")
    assert house.round() == {"cpu:0": ["a"], "cpu:1": ["b", "d"]}
    house.train_on()
    assert house.round() == {"cpu:0": ["c"], "cpu:1": ["a", "b", "d"]}
    house.train_on()
    assert {job.retries for job in house.jobs().values()} == {0}
    assert all(job.losses == NONE for job in house.jobs().values())


def test_a_suspect_that_trains_past_the_place_is_cleared_and_shares_again(house):
    for name in "ab":
        house.submit(name)
    for _ in range(2):
        assert house.round() == {"cpu:0": ["a", "b"]}
        house.die()
    assert house.round() == {"cpu:0": ["a"]}
    assert "tried alone" in house.jobs()["b"].waiting_for
    house.now += 1.0
    house.tell(step=9)  # not longer than before
    assert house.round() == {"cpu:0": ["a"]}  # not further
    house.tell(step=4)
    assert house.jobs()["a"].losses == NONE
    told = [event["message"] for event in house.store.events(house.jobs()["a"].id)][-2:]
    assert "is past step 3" in told[0]
    assert "others are to be tried alone next" in told[1]


@pytest.mark.parametrize("kind", [LossKind.NODE, LossKind.DEVICE])
def test_what_is_lost_with_its_node_or_device_is_charged_to_nobody(house, kind):
    house.submit("a", max_retries=0)
    for _ in range(5):
        assert house.round() == {"cpu:0": ["a"]}
        house.die(kind=kind)
    job = house.jobs()["a"]
    assert (job.state, job.retries, job.losses.deaths) == (JobState.QUEUED, 0, ())


def test_a_job_waits_before_it_is_tried_again_and_says_so(house):
    house.submit("a")
    house.round()
    house.die()
    assert "its next try at" in house.jobs()["a"].waiting_for
    held = house.reconciler.snapshot().held
    assert list(held.values()) == [house.jobs()["a"].waiting_for]
    assert [job.leaving for job in house.reconciler.snapshot().view.jobs] == [True]
    house.host("tiny@cpu:0#9999")
    house.report("tiny@cpu:0#9999")
    assert house.plan().placements == {}
    house.now += 2.0
    assert list(house.plan().placements) == [house.jobs()["a"].id]


@pytest.mark.parametrize(("wish", "state"), [(Wish.PAUSE, JobState.PAUSED), (Wish.CANCEL, JobState.CANCELLED)])
def test_a_wish_wins_over_the_death_of_the_actor_whoever_is_the_cause(house, wish, state):
    job_id = house.submit("a", max_retries=0)
    house.round()
    house.store.wish(job_id, wish, "asked")
    house.die()
    assert house.jobs()["a"].state is state


def test_a_retry_by_hand_starts_with_a_clean_record(house):
    house.submit("a", max_retries=0)
    house.round()
    house.die()
    assert house.jobs()["a"].state is JobState.FAILED
    job_verbs.retry(house.store, house.jobs()["a"], None)
    job = house.jobs()["a"]
    assert (job.state, job.retries, job.losses) == (JobState.QUEUED, 0, NONE)


def test_an_actor_that_is_gone_after_a_restart_of_the_orchestrator_is_charged_to_nobody(house):
    house.submit("a", max_retries=0)
    house.round()
    house.fleet.members.clear()
    house.reconciler.observe()
    job = house.jobs()["a"]
    assert (job.state, job.retries, job.losses.deaths, job.losses.others) == (JobState.QUEUED, 0, (), 1)


@pytest.mark.parametrize(
    ("phase", "kind"), [(ActorPhase.CRASHED, LossKind.DIED), (ActorPhase.DEVICE_GONE, LossKind.DEVICE)]
)
def test_an_actor_that_says_its_device_is_lost_is_replaced(house, phase, kind):
    house.submit("a")
    house.round()
    member = house.fleet.at("cpu:0")
    loss = house.fleet._answered(
        member, ActorReport(member.name, "boot", phase, reason="CUDA error: uncorrectable ECC")
    )
    assert (loss.kind, loss.by_itself) == (kind, kind is LossKind.DIED)
    assert "uncorrectable ECC" in loss.reason


@pytest.mark.parametrize("policy", ["fifo-memory", DEFAULT])
def test_who_rests_before_a_new_try_does_not_lose_the_place_to_another_base_model(tmp_path, monkeypatch, policy):
    """One device, two base models: an actor's death costs its jobs seconds, not the turn of all the others."""
    house = House(tmp_path, monkeypatch, policy=policy)
    house.describe("/models/other")
    house.submit("first")
    house.round()
    house.submit("second", base_model="/models/other", max_steps=100_000)
    house.die()
    plan = house.plan()
    assert (plan.placements, plan.rehosts) == ({}, {"cpu:0": TINY})
    assert set(plan.waiting) == {job.id for job in house.jobs().values()}
    assert "its next try at" in plan.waiting[house.jobs()["first"].id]
    assert house.round() == {"cpu:0": ["first"]}
