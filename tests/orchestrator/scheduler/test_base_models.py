"""Base models as classes of jobs with a loading between them: which is next on an actor, and when one is left."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.scheduler.policy import decide
from orchestrator.scheduler.view import ActorState, ClusterView, JobView
from orchestrator.simulation.simulator import Simulation
from orchestrator.simulation.trace import Profile, TraceJob
from support.clusters import CAPPED, SPEEDS, actor

FREE = dict.fromkeys(("adapter_seconds", "base_bytes", "reserve_bytes", "activation_bytes_per_token"), 0)
PROFILE = Profile(
    name="test",
    step_seconds=0.1,
    token_seconds=9e-4,  # a job of 1000 tokens takes a second a step alone
    memory_bytes=10**12,
    microbatch_tokens=1000,
    swap_seconds=2.0,
    base_load_seconds=50.0,
    **FREE,
)


def job(name, base, steps, arrival=0.0, tokens=1000.0):
    return TraceJob(
        job=name, arrival_s=arrival, steps=steps, tokens_per_step=tokens, adapter_bytes=0, base_model=base, priority=0
    )


class Counted(Simulation):
    """Counts the base models that its actors load."""

    loads = 0

    def _ask(self, view):
        plan = super()._ask(view)
        self.loads += len(plan.rehosts)
        return plan


def run(jobs, policy="cosrpt", profile=PROFILE, actors=1):
    simulation = Counted(jobs, [profile] * actors, policy)
    return simulation.run(), simulation.loads


def test_an_emptied_actor_loads_at_once_what_it_was_emptied_for():
    """Nothing else happens for an hour: a clock that waits for its next event would let the actor idle so long."""
    outcome, _ = run([job("long", "A", 3600), job("short", "B", 10, arrival=100.0)])
    assert outcome.turnaround == pytest.approx([3600 + 50 + 10 + 50 + 2, 50 + 10])


def test_what_is_short_against_a_loading_is_done_before_its_base_model_is_left():
    """Beside A's last job of 40 s ten others of a second each wait for B: they gain less than coming back costs."""
    jobs = [job("a", "A", 40), *(job(f"b{n}", "B", 1, arrival=1.0) for n in range(3))]
    outcome, loads = run(jobs)
    assert outcome.turnaround[0] == pytest.approx(40.0)
    assert loads == 1


def test_the_base_model_with_the_most_work_done_per_second_of_loading_and_training_is_next():
    """B: 3 jobs in 50 + 30 s; C: 4 in 50 + 400 s, but its first alone as soon as B's are done."""
    jobs = [job("a", "A", 1), *(job(f"b{n}", "B", 10) for n in range(3)), *(job(f"c{n}", "C", 100) for n in range(4))]
    outcome, loads = run(jobs)
    assert loads == 2
    assert outcome.turnaround[1:4].max() < outcome.turnaround[4:].min()


def test_tiny_jobs_of_many_base_models_load_each_once_and_share_their_steps():
    """27 jobs of 9 base models at once, where a loading takes longer than all jobs of a base model together."""
    tiny = PROFILE.model_copy(update={"step_seconds": 0.02, "token_seconds": 5e-5, "adapter_seconds": 2e-3})
    sizes = [(16, 50.0), (9, 600.0), (7, 320.0)]
    jobs = [job(f"{b}-{n}", f"base-{b}", steps, tokens=size) for b in range(9) for n, (steps, size) in enumerate(sizes)]
    (ours, loads), (theirs, _) = run(jobs, profile=tiny), run(jobs, "fifo-4", tiny)
    assert loads == 8  # one is there at the start
    assert ours.makespan <= theirs.makespan + 1e-6


def test_a_rare_base_model_gets_its_turn_in_a_stream_of_short_jobs_for_another():
    """A's actor is never out of short jobs, and each of them goes first: the age of B's decides."""
    quick = PROFILE.model_copy(update={"base_load_seconds": 5.0})
    stream = [job(f"a{n}", "A", 1, arrival=0.98 * max(0, n - 5)) for n in range(600)]
    outcome, _ = run([stream[0], job("rare", "B", 5), *stream[1:]], profile=quick)
    assert outcome.turnaround[1] < 0.8 * stream[-1].arrival_s


@settings(max_examples=60)
@given(st.integers(1, 400), st.floats(1.0, 3.0), st.lists(st.tuples(st.sampled_from("BC"), st.integers(1, 9))))
def test_nobody_is_left_behind_whose_rest_is_shorter_than_coming_back(steps, times, others):
    """On one actor, of jobs that have just come, however many wait for other base models."""
    speed = SPEEDS["A"]
    rest = steps * (speed.step_seconds + speed.added(8, 64))
    place = replace(actor("x", "A", 10**6, ActorState.READY, None, CAPPED), load_seconds=times * rest)
    jobs = [JobView("last", "A", 0, 0, 1, 8, "x", steps, movable=True)]
    jobs += [JobView(f"j{n}", base, 0, 1 + n, 1, 8, None, more) for n, (base, more) in enumerate(others)]
    plan = decide(ClusterView(tuple(jobs), (place,), {}), "cosrpt")
    assert (plan.preemptions, plan.rehosts) == ({}, {})
