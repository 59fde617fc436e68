"""Nobody waits for ever under the FIFO policies, however many jobs of a higher priority keep coming."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.scheduler.policies.fifo import AGING_S
from orchestrator.scheduler.policy import decide
from orchestrator.scheduler.view import ActorShape, ActorState, ActorView, ClusterView, JobView, MemoryModel, SpeedModel

MODELS = {"speeds": {"A": SpeedModel(0.1, 1e-3, 0.01)}, "memories": {"A": MemoryModel(0.0, 0.0)}}
PLACES = {"fifo": 1, "fifo-4": 4, "fifo-memory": 3}  # jobs on one actor; memory holds three of the last


def actor(name):
    return ActorView(name, name, ActorState.READY, ActorShape("cpu", 64), "A", memory_limit=300, **MODELS)


def job(name, priority, arrival, at):
    size = 60 if name.startswith("four") else 100
    return JobView(name, "A", priority, arrival, size, 1, submitted_at=at, queued_at=at)


def started(policy, gap, every, per_round, rounds_each, actors, most):
    """The round in which a job starts that came just before a stream of more urgent ones, or None."""
    prefix = "four" if policy == "fifo-4" else "j"
    places = [actor(f"x{n}") for n in range(actors)]
    jobs, ends = [job(f"{prefix}-first", 0, 0, 0.0)], {}
    # every place is taken when it comes
    taken = [
        replace(job(f"{prefix}-t{n}", gap, 1 + n, 0.0), actor=f"x{n % actors}") for n in range(actors * PLACES[policy])
    ]
    jobs += taken
    ends |= {one.id: 1 + number for number, one in enumerate(taken)}
    for number in range(most):
        now = number * every
        jobs = [one for one in jobs if ends.get(one.id) != number]
        jobs += [job(f"{prefix}{number}.{n}", gap, 100 + number, now) for n in range(per_round)]
        plan = decide(ClusterView(tuple(jobs), tuple(places), {}, now), policy)
        if f"{prefix}-first" in plan.placements:
            return number
        jobs = [replace(one, actor=plan.placements.get(one.id, one.actor)) for one in jobs]
        ends |= dict.fromkeys(plan.placements, number + rounds_each)
    return None


@settings(max_examples=60)
@given(
    policy=st.sampled_from(sorted(PLACES)),
    gap=st.integers(1, 3),
    every=st.sampled_from([60.0, 150.0, 400.0]),
    per_round=st.integers(1, 3),
    rounds_each=st.integers(1, 3),
    actors=st.integers(1, 2),
)
@pytest.mark.slow
def test_a_job_starts_once_those_that_were_ahead_of_it_have_had_their_turn(
    policy, gap, every, per_round, rounds_each, actors
):
    ahead = (int(gap * AGING_S / every) + 1) * per_round  # came before its age had made up for their priority
    places = actors * PLACES[policy]
    bound = max(int(gap * AGING_S / every), -(-ahead // places) * rounds_each) + places + 2 * rounds_each + 2
    assert started(policy, gap, every, per_round, rounds_each, actors, bound + 1) is not None


@pytest.mark.parametrize("policy", sorted(PLACES))
def test_a_class_is_worth_its_seconds_and_no_more(policy):
    for seconds, first in ((AGING_S - 1, "urgent"), (AGING_S + 1, "old")):
        jobs = (job("old", 0, 0, 0.0), job("urgent", 1, 1, seconds))
        lone = replace(actor("x"), memory_limit=100)
        plan = decide(ClusterView(jobs, (lone,), {}, seconds), policy)
        assert list(plan.placements) == [first]
