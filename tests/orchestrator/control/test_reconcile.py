"""What the orchestrator makes of the reports of its actors: real store, reports written by hand, no Ray."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from gpu_actor.contract.description import BaseDescription, LinearShape
from gpu_actor.contract.orders import Attach, Detach, Finish, Forget
from gpu_actor.contract.report import ActorPhase, ActorReport, StepSample, TenantReport, TenantState
from orchestrator.cluster.cluster_config import ClusterConfig
from orchestrator.cluster.member import Instruction, Member
from orchestrator.cluster.obstacles import Obstacle
from orchestrator.cluster.places import listed_places
from orchestrator.jobs.states import JobState
from orchestrator.scheduler.view import Plan
from orchestrator.store.records import Wish
from support.house import NODES
from support.house import House as Empty

ACTOR = "tiny@cpu:0#0000"


class House(Empty):
    """With one actor that has job `a` under attempt 1."""

    def __init__(self, folder, max_retries=1):
        super().__init__(folder)
        self.host(ACTOR, described=False)
        self.id = self.submit("a", max_retries=max_retries, out="out")
        self.folder = folder / "out"
        self.store.assign(self.id, ACTOR, "boot")
        (self.folder / "checkpoint-5").mkdir(parents=True)

    def hear(self, state=None, attempt=1, boot="boot", **fields):
        """The actor reports its job in a state (None: it does not know it); returns the instructions that follow."""
        tenants = () if state is None else (TenantReport(self.id, attempt, state, **fields),)
        return self.report(ACTOR, *tenants, boot=boot)

    @property
    def job(self):
        return self.store.get(self.id)


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


@pytest.mark.parametrize(
    ("wish", "reported", "state", "kept"),
    [
        (None, TenantState.SUCCEEDED, JobState.SUCCEEDED, False),
        (None, TenantState.FAILED, JobState.FAILED, True),
        (None, TenantState.DETACHED, JobState.QUEUED, True),
        (None, TenantState.CANCELLED, JobState.CANCELLED, False),
        (Wish.PAUSE, TenantState.SUCCEEDED, JobState.SUCCEEDED, False),
        (Wish.PAUSE, TenantState.FAILED, JobState.FAILED, True),
        (Wish.PAUSE, TenantState.DETACHED, JobState.PAUSED, True),
        (Wish.CANCEL, TenantState.SUCCEEDED, JobState.SUCCEEDED, False),
        (Wish.CANCEL, TenantState.FAILED, JobState.CANCELLED, False),
        (Wish.CANCEL, TenantState.DETACHED, JobState.CANCELLED, False),
        (Wish.CANCEL, TenantState.CANCELLED, JobState.CANCELLED, False),
    ],
)
def test_how_a_job_leaves_its_actor(house, wish, reported, state, kept):
    house.store.wish(house.id, wish, "asked")
    assert house.hear(reported, step=7, total_steps=9, reason="why") == [Instruction(ACTOR, Forget(house.id, 1))]
    assert house.job.state is state
    assert house.job.progress["step"] == 7
    assert house.job.reason == ("why" if state in (JobState.FAILED, JobState.SUCCEEDED) else None)
    assert (house.folder / "checkpoint-5").exists() == kept
    assert [job.id for job in house.over] == ([] if state in (JobState.QUEUED, JobState.PAUSED) else [house.id])
    assert house.hear(reported, step=7, total_steps=9) == [
        Instruction(ACTOR, Forget(house.id, 1))
    ]  # reported again, changes nothing
    assert house.job.state is state


def test_an_old_attempt_says_nothing_about_the_new_one(house):
    house.hear(TenantState.DETACHED)
    house.store.assign(house.id, ACTOR, "boot")
    for state in (TenantState.SUCCEEDED, TenantState.FAILED, TenantState.TRAINING):
        instructions = house.hear(state, attempt=1)
        assert house.job.state is JobState.RUNNING
        assert instructions[-1] == Instruction(ACTOR, Attach(house.job.spec.to_adapter_spec(house.id), 2))
    house.hear(TenantState.SUCCEEDED, attempt=2)
    assert house.job.state is JobState.SUCCEEDED


def test_another_process_under_the_same_name_has_not_got_the_job(house):
    house.hear(TenantState.SUCCEEDED, boot="another")
    assert (house.job.state, house.job.retries) == (JobState.QUEUED, 0)


def test_a_job_that_the_actor_does_not_know_is_given_to_it_again(house):
    assert house.hear() == [Instruction(ACTOR, Attach(house.job.spec.to_adapter_spec(house.id), 1))]
    assert house.job.state is JobState.RUNNING


def test_what_happens_to_a_jobs_files_becomes_events_once_each(house):
    training = {"step": 7, "total_steps": 9}
    damaged, full = "checkpoint-5 is damaged", "nothing is saved since step 4"
    for fields in (
        {"notes": (damaged,)},
        {"notes": (damaged,), "unsaved": full},
        {"notes": (damaged,), "unsaved": full},
        {"notes": (damaged, "gone")},
        {"notes": (damaged, "gone")},
    ):
        house.hear(TenantState.TRAINING, **training, **fields)
    told = [event["message"] for event in house.store.events(house.id)]
    assert told[-4:] == [damaged, full, "gone", "its files can be written again"]
    assert told.count(damaged) == 1


def test_an_adapter_that_belongs_elsewhere_is_put_away_with_a_checkpoint(house):
    house.hear(TenantState.DETACHED)
    assert house.hear(TenantState.TRAINING) == [Instruction(ACTOR, Detach(house.id, True, 1))]
    assert house.job.state is JobState.QUEUED


@pytest.mark.parametrize(("wish", "keep"), [(Wish.PAUSE, True), (Wish.CANCEL, False)])
def test_a_wish_is_passed_on_until_it_is_done(house, wish, keep):
    house.store.wish(house.id, wish, "asked")
    for state in (TenantState.PREPARING, TenantState.TRAINING):
        assert house.hear(state) == [Instruction(ACTOR, Detach(house.id, keep, 1))]
        assert house.job.state is JobState.RUNNING


@pytest.mark.parametrize(("wish", "state"), [(Wish.PAUSE, JobState.PAUSED), (Wish.CANCEL, JobState.CANCELLED)])
def test_a_wish_wins_over_the_death_of_the_actor(tmp_path, wish, state):
    house = House(tmp_path, max_retries=0)
    house.store.wish(house.id, wish, "asked")
    house.fleet.members.clear()
    house.reconciler.observe()
    assert house.job.state is state


def test_progress_is_live_at_once_and_in_the_store_soon(house):
    house.hear(TenantState.TRAINING, step=3, total_steps=9)
    house.hear(TenantState.TRAINING, step=4, total_steps=9)
    assert house.reconciler.progress.counters[house.id]["step"] == 4
    assert house.job.progress["step"] == 3  # at most one write a second
    house.hear(TenantState.PREPARING)
    assert house.reconciler.progress.counters[house.id]["step"] == 4


@pytest.mark.parametrize(
    ("last", "state"),
    [
        (TenantState.SUCCEEDED, JobState.SUCCEEDED),
        (TenantState.FAILED, JobState.FAILED),
        (TenantState.DETACHED, JobState.QUEUED),
        (TenantState.PREPARING, JobState.QUEUED),
        (None, JobState.QUEUED),
    ],
)
def test_a_shutdown_keeps_what_was_done_and_blames_nobody(house, last, state):
    member = house.fleet.members[ACTOR]
    tenants = () if last is None else (TenantReport(house.id, 1, last),)
    member.report = ActorReport(ACTOR, "boot", ActorPhase.READY, tenants=tenants)
    house.reconciler.settle([member])
    assert (house.job.state, house.job.retries) == (state, 0)


def test_a_job_that_makes_room_joins_the_queue_and_nobody_is_blamed(house):
    house.store.wish(house.id, Wish.YIELD, "is taken off")
    assert house.hear(TenantState.TRAINING) == [Instruction(ACTOR, Detach(house.id, True, 1))]
    house.hear(TenantState.DETACHED, step=3, total_steps=9)
    assert (house.job.state, house.job.retries, house.job.wish) == (JobState.QUEUED, 0, None)
    assert house.job.progress["step"] == 3
    assert (house.folder / "checkpoint-5").exists()


def test_a_job_that_has_not_started_is_off_when_its_actor_has_taken_the_order_that_bars_it(house):
    """The order to begin may still be on its way: given elsewhere at once, it would train twice."""
    house.store.wish(house.id, Wish.PAUSE, "asked")
    bars = [Instruction(ACTOR, Detach(house.id, True, 1))]
    taken = []

    async def take(order):
        taken.append(order)

    def gone():
        raise ConnectionError

    for remote, state in ((lambda _: gone(), JobState.RUNNING), (take, JobState.PAUSED)):
        house.fleet.members[ACTOR].handle = SimpleNamespace(carry_out=SimpleNamespace(remote=remote))
        assert house.hear(None) == bars
        asyncio.run(house.reconciler._send(bars))
        house.hear(None)
        assert house.job.state is state
    assert taken == [bars[0].order]


def test_a_job_that_stops_early_is_told_so_with_its_reason(house):
    house.store.wish(house.id, Wish.FINISH, "stops", reason="rung 1")
    assert house.hear(TenantState.TRAINING) == [Instruction(ACTOR, Finish(house.id, "rung 1"))]
    house.hear(TenantState.SUCCEEDED, step=3, total_steps=9, reason="rung 1")
    assert (house.job.state, house.job.reason) == (JobState.SUCCEEDED, "rung 1")
    assert house.store.events(house.id)[-1]["message"] == "succeeded after 3 steps: rung 1"


def test_a_pre_empted_job_is_recorded_before_its_actor_hears_of_it_and_once(house):
    house.hear(TenantState.TRAINING, step=3, total_steps=9)
    plan = Plan(preemptions={house.id: "a shorter job goes first"})
    assert house.carry_out(plan) == [Instruction(ACTOR, Detach(house.id, True, 1))]
    assert house.job.wish is Wish.YIELD
    assert "a shorter job goes first" in house.store.events(house.id)[-1]["message"]
    assert house.carry_out(plan) == []


def fail_to_load(house, place):
    """An actor in a place says that its base model cannot be loaded, and the reconciler hears of the loss."""
    member = Member(f"tiny@{place.id}#1", place, "/models/tiny", handle=None)
    loss = house.fleet._answered(
        member, ActorReport(member.name, "boot", ActorPhase.FAILED, reason=f"no room on {place.id}")
    )
    house.reconciler.actor_lost(loss)


def test_jobs_fail_only_when_no_place_that_may_host_their_base_is_left(house):
    config = ClusterConfig(actors=[{}, {}, {"base_model": "/models/other"}])
    places = listed_places(config.actors, NODES)
    house.fleet.places = {place.id: place for place in places}
    house.store.move(house.id, JobState.QUEUED, "waits")
    house.fleet.members.clear()  # whoever hosted it is gone: what counts is where it can be loaded
    for attempt in range(2):
        fail_to_load(house, places[0])
        assert house.job.state is JobState.QUEUED
        assert house.fleet.views()[0].barred == {"/models/tiny": "no room on cpu:0"}
        assert not house.fleet.views()[1].barred
        if attempt == 0:
            house.fleet._answered(
                Member("m", places[0], "/models/tiny", None), ActorReport("m", "boot", ActorPhase.READY)
            )
            assert not house.fleet.views()[0].barred
    fail_to_load(house, places[1])
    assert house.job.state is JobState.FAILED
    assert house.job.reason == "/models/tiny cannot be loaded on cpu:0: no room on cpu:0; cpu:1: no room on cpu:1"
    assert not any(view.barred for view in house.fleet.views())  # jobs that come later find all of them open


def test_a_place_is_called_by_what_its_accelerator_calls_itself(house):
    (member,) = house.fleet.members.values()
    house.fleet._answered(member, ActorReport(ACTOR, "boot", ActorPhase.READY, device_name="H100"))
    assert member.place.device_name == "H100"
    assert house.fleet._device_names == {"cpu:0": "H100"}


@pytest.mark.parametrize("left", [60.0, -1.0])
def test_a_place_tries_again_after_a_while(house, left):
    obstacles = house.fleet.obstacles
    obstacles._barred["cpu:0", "/models/tiny"] = Obstacle("why", time.monotonic() + left)
    assert obstacles.barred("cpu:0", "/models/tiny") == ("why" if left > 0 else None)
    assert house.fleet.views()[0].barred == ({"/models/tiny": "why"} if left > 0 else {})


def test_swaps_are_timed_from_the_wish_to_the_leaving_and_from_the_assignment_to_the_training(house, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("orchestrator.knowledge.swap_times.time.monotonic", lambda: clock[0])
    base = BaseDescription("/models/tiny", "llama", (LinearShape("q_proj", 8, 8),), 8, 1, 8, 100)
    (place,) = house.fleet.places.values()
    profiles = house.reconciler._profiles
    steps = (StepSample(10, 100, 1, 0.1, 10**9, 10**6),)
    profiles.learn(place, base, ActorReport(ACTOR, "boot", ActorPhase.READY, memory_idle=10**8, steps=steps))
    house.hear(TenantState.TRAINING, step=3, total_steps=9)
    house.carry_out(Plan(preemptions={house.id: "a shorter job goes first"}))
    clock[0] += 3.0
    house.hear(TenantState.DETACHED, step=4, total_steps=9)
    assert profiles.of(place, base.ref).leave_seconds == 3.0
    house.carry_out(Plan(placements={house.id: place.id}))
    clock[0] += 5.0
    house.hear(TenantState.PREPARING, attempt=2)
    assert profiles.of(place, base.ref).start_seconds is None
    for _ in range(2):
        house.hear(TenantState.TRAINING, attempt=2, step=4, total_steps=9)
        assert profiles.of(place, base.ref).start_seconds == 5.0
        clock[0] += 50.0
    house.hear(TenantState.DETACHED, attempt=2, step=5, total_steps=9)  # nobody asked: no measure
    assert profiles.of(place, base.ref).leave_seconds == 3.0
    assert not house.reconciler._swaps._given
    assert not house.reconciler._swaps._asked


def test_a_person_who_pauses_a_job_that_makes_room_is_heard(house):
    from orchestrator.control import job_verbs

    house.store.wish(house.id, Wish.YIELD, "is taken off")
    job_verbs.pause(house.store, house.job)
    house.hear(TenantState.DETACHED, step=3, total_steps=9)
    assert house.job.state is JobState.PAUSED
