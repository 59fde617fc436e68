"""The policy: its rules one by one, then its promises on random clusters."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_actor.footprint import BaseDescription, LinearShape
from orchestrator.scheduler import estimate
from orchestrator.scheduler.policy import PATIENCE_S, decide
from orchestrator.scheduler.view import ActorShape, ActorState, ActorView, ClusterView, JobView

MIB = 2**20
SHAPE = ActorShape("cpu", token_budget=64)


def base(ref, megabytes=40):
    return BaseDescription(
        ref, "llama", (LinearShape("model.layers.0.q_proj", 64, 64),), 64, 1, 128, megabytes * MIB // 4
    )


BASES = {ref: base(ref, size) for ref, size in (("A", 40), ("B", 40), ("C", 80))}
FIXED = estimate.fixed_bytes(BASES["A"], SHAPE)  # of A and of B


def job(name, ref="A", *, size=10, priority=0, arrival=0, waited=0.0, actor=None, tokens=8):
    return JobView(name, ref, priority, arrival, size * MIB, tokens, actor, queued_at=-waited)


def actor(name, hosts="A", *, room=100, state=ActorState.READY, pinned=None, reason=None):
    """An actor with `room` MiB beside base model A or B and its activations."""
    limit = None if room is None else FIXED + room * MIB
    return ActorView(name, name, state, SHAPE, hosts, pinned, limit, reason)


def view(jobs, actors):
    return ClusterView(tuple(jobs), tuple(actors), BASES)


def carry_out(seen, plan):
    """The cluster after a plan."""
    jobs = [replace(j, actor=plan.placements.get(j.id, j.actor)) for j in seen.jobs if j.id not in plan.rejections]
    actors = [
        replace(a, base_model=plan.rehosts[a.id], state=ActorState.STARTING) if a.id in plan.rehosts else a
        for a in seen.actors
    ]
    return view(jobs, actors)


def test_higher_priority_goes_first_then_the_earlier():
    jobs = [job("late", arrival=3), job("early", arrival=1), job("urgent", priority=5, arrival=9)]
    plan = decide(view(jobs, [actor("x", room=25)]))
    assert plan.placements == {"urgent": "x", "early": "x"}
    assert plan.order == {"x": ("urgent", "early")}


def test_a_job_that_does_not_fit_says_how_much_it_needs_and_lets_smaller_ones_pass():
    plan = decide(
        view([job("run", size=60, actor="x"), job("big", size=50, arrival=1), job("small", arrival=2)], [actor("x")])
    )
    assert plan.placements == {"small": "x"}
    assert plan.waiting["big"] == "needs 50.0 MiB, the roomiest actor that hosts A has 30.0 MiB free"


def test_after_its_patience_nobody_passes_a_job_that_does_not_fit():
    jobs = [job("run", size=60, actor="x"), job("big", size=50, arrival=1, waited=PATIENCE_S), job("small", arrival=2)]
    plan = decide(view(jobs, [actor("x")]))
    assert plan.placements == {}
    assert plan.waiting["small"] == "x is kept for a job that has waited longer"


def test_the_actor_kept_for_one_job_leaves_the_others_open():
    jobs = [job("r1", size=60, actor="x"), job("r2", size=60, actor="y"), job("big", size=50, waited=PATIENCE_S)]
    plan = decide(view([*jobs, job("small", arrival=2)], [actor("x"), actor("y")]))
    assert plan.placements == {"small": "y"}


def test_jobs_spread_over_the_actors_of_their_base():
    plan = decide(view([job(f"j{i}", arrival=i) for i in range(4)], [actor("x"), actor("y")]))
    assert sorted(plan.placements.values()) == ["x", "x", "y", "y"]


def test_a_job_waits_for_the_actor_with_fewer_jobs_that_is_still_loading():
    actors = [actor("x"), actor("y", state=ActorState.STARTING)]
    plan = decide(view([job("j", arrival=1), job("r", actor="x")], actors))
    assert plan.placements == {}
    assert plan.waiting == {"j": "A is being loaded on y"}


@pytest.mark.parametrize("room", [9, 0, -30])
def test_what_can_never_fit_is_rejected_with_both_numbers(room):
    plan = decide(view([job("j")], [actor("x", room=room), actor("y", room=room - 1)]))
    needed = FIXED + 10 * MIB
    assert f"({needed} bytes)" in plan.rejections["j"]
    assert f"({FIXED + room * MIB} bytes)" in plan.rejections["j"]


def test_nothing_is_rejected_while_the_memory_of_an_actor_is_unknown():
    plan = decide(
        view([job("j")], [actor("x", room=0), actor("y", "B", room=None, pinned="A", state=ActorState.BLOCKED)])
    )
    assert plan.rejections == {}


def test_only_the_largest_worst_micro_batch_counts():
    excess = estimate.excess_bytes(BASES["A"], 64 * 64, SHAPE)
    limit = FIXED + excess + 35 * MIB
    place = replace(actor("x"), memory_limit=limit)
    plan = decide(view([job(f"j{i}", arrival=i, tokens=64 * 64) for i in range(4)], [place]))
    assert plan.placements == {"j0": "x", "j1": "x", "j2": "x"}


def test_an_idle_actor_changes_to_the_base_of_the_first_waiting_job():
    jobs = [job("b", "B", arrival=2), job("c", "C", arrival=1)]
    plan = decide(view(jobs, [actor("x")]))
    assert plan.rehosts == {"x": "C"}
    assert plan.waiting == {
        "c": "C is being loaded on x",
        "b": "no actor hosts B and every actor is busy with another base model",
    }


def test_an_empty_place_is_used_before_a_hosted_base_is_dropped():
    plan = decide(view([job("b", "B")], [actor("a"), actor("z", None, state=ActorState.EMPTY)]))
    assert plan.rehosts == {"z": "B"}


def test_an_actor_of_the_base_is_used_before_one_that_could_host_any():
    actors = [actor("x", None, state=ActorState.EMPTY), actor("y", None, state=ActorState.EMPTY, pinned="B")]
    for waited in (0.0, PATIENCE_S):
        assert decide(view([job("b", "B", waited=waited)], actors)).rehosts == {"y": "B"}


def test_each_base_gets_a_host_before_one_gets_two():
    jobs = [job(f"a{i}", arrival=i) for i in range(4)] + [job("b", "B", arrival=9)]
    empty = [actor(name, None, state=ActorState.EMPTY) for name in ("x", "y", "z")]
    assert decide(view(jobs, empty[:2])).rehosts == {"x": "A", "y": "B"}
    assert decide(view(jobs, empty)).rehosts == {"x": "A", "y": "B", "z": "A"}


def test_one_job_starts_one_actor():
    empty = [actor(name, None, state=ActorState.EMPTY) for name in ("x", "y", "z")]
    assert decide(view([job("a")], empty)).rehosts == {"x": "A"}


def test_an_actor_with_active_jobs_keeps_its_base_however_long_another_waits():
    plan = decide(view([job("run", actor="x"), job("b", "B", waited=10 * PATIENCE_S)], [actor("x")]))
    assert plan.rehosts == {}
    assert plan.waiting["b"] == "no actor hosts B and x changes to it once its jobs are done"


def test_a_pinned_actor_never_changes():
    plan = decide(view([job("b", "B", waited=10 * PATIENCE_S)], [actor("x", pinned="A")]))
    assert plan.rehosts == {}
    assert plan.waiting["b"] == "no actor hosts B and the cluster file gives every actor to another base model"


def test_a_blocked_actor_is_left_alone_and_named():
    plan = decide(view([job("a")], [actor("x", state=ActorState.BLOCKED, reason="its node is gone")]))
    assert (plan.placements, plan.rehosts) == ({}, {})
    assert plan.waiting["a"] == "no actor hosts A and x: its node is gone"


def test_a_rare_base_gets_its_turn_in_a_stream_of_jobs_for_another():
    """One actor, a new job for A each round, each running for three rounds; B came first of those that wait."""
    jobs, base_model, ends = [job("b", "B", arrival=0)], "A", {}
    for now in range(30):
        jobs.append(job(f"a{now}", arrival=now + 1))
        jobs = [replace(j, queued_at=-now * 10.0) if j.actor is None else j for j in jobs if ends.get(j.id) != now]
        plan = decide(view(jobs, [actor("x", base_model)]))
        if plan.placements.get("b"):
            break
        ends |= dict.fromkeys(plan.placements, now + 3)
        jobs = list(carry_out(view(jobs, [actor("x", base_model)]), plan).jobs)
        base_model = plan.rehosts.get("x", base_model)
    else:
        pytest.fail("the job for B never started")
    assert now <= PATIENCE_S / 10 + 4


# -- promises ----------------------------------------------------------------------------------------------------------

refs = st.sampled_from("ABC")


@st.composite
def clusters(draw):
    actors = []
    for number in range(draw(st.integers(0, 5))):
        state = draw(st.sampled_from(ActorState))
        pinned = draw(st.none() | refs)
        hosts = None if state is ActorState.EMPTY else pinned or draw(refs)
        known = st.integers(0, 120) if state is ActorState.READY else st.none() | st.integers(0, 120)
        actors.append(actor(f"x{number}", hosts, room=draw(known), state=state, pinned=pinned))
    jobs = []
    for number in range(draw(st.integers(0, 14))):
        j = job(
            f"j{number}",
            draw(refs),
            size=draw(st.integers(1, 70)),
            priority=draw(st.integers(-1, 1)),
            arrival=number,
            waited=draw(st.sampled_from([0.0, PATIENCE_S])),
            tokens=draw(st.sampled_from([8, 64, 5000])),
        )
        busy = [a for a in actors if a.base_model == j.base_model and a.state in (ActorState.READY, ActorState.BLOCKED)]
        at = draw(st.sampled_from([None, *busy]))
        if at is not None and used([*jobs, replace(j, actor=at.id)], at) <= (at.memory_limit or 0):
            j = replace(j, actor=at.id)
        jobs.append(j)
    return view(draw(st.permutations(jobs)), draw(st.permutations(actors)))


def used(jobs, at):
    here = [j for j in jobs if j.actor == at.id]
    if not here:
        return 0
    described = BASES[at.base_model]
    excess = max(estimate.excess_bytes(described, j.worst_tokens, at.shape) for j in here)
    return estimate.fixed_bytes(described, at.shape) + sum(j.adapter_bytes for j in here) + excess


@settings(max_examples=400, deadline=None)
@given(clusters())
def test_every_queued_job_is_placed_or_rejected_or_told_why_it_waits(seen):
    plan = decide(seen)
    queued = sorted(j.id for j in seen.jobs if j.actor is None)
    assert sorted([*plan.placements, *plan.waiting, *plan.rejections]) == queued
    assert all([*plan.waiting.values(), *plan.rejections.values()])


@settings(max_examples=400, deadline=None)
@given(clusters())
def test_no_plan_goes_over_memory_or_onto_the_wrong_actor(seen):
    after = carry_out(seen, decide(seen))
    actors = {a.id: a for a in seen.actors}
    for j in after.jobs:
        if j.actor is not None and decide(seen).placements.get(j.id):
            at = actors[j.actor]
            assert at.state is ActorState.READY
            assert at.base_model == j.base_model
            assert used(after.jobs, at) <= at.memory_limit


@settings(max_examples=400, deadline=None)
@given(clusters())
def test_bases_change_only_on_idle_actors_that_may(seen):
    plan = decide(seen)
    for name, ref in plan.rehosts.items():
        at = next(a for a in seen.actors if a.id == name)
        assert at.state in (ActorState.EMPTY, ActorState.READY)
        assert at.base_model != ref
        assert at.pinned in (None, ref)
        assert not [j for j in seen.jobs if j.actor == name]
        assert name not in plan.placements.values()


@settings(max_examples=400, deadline=None)
@given(clusters(), st.randoms())
def test_the_order_in_which_things_are_seen_does_not_matter(seen, random):
    jobs, actors = list(seen.jobs), list(seen.actors)
    random.shuffle(jobs)
    random.shuffle(actors)
    assert decide(view(jobs, actors)) == decide(seen)


@settings(max_examples=600, deadline=None)
@given(clusters())
def test_a_plan_carried_out_starts_no_further_job(seen):
    """It may start further actors, each at most once: then nothing is left to do."""
    plan = decide(seen)
    first, started = plan, set(plan.rehosts)
    while plan.rehosts or plan is first:
        seen = carry_out(seen, plan)
        plan = decide(seen)
        assert (plan.placements, plan.rejections) == ({}, {})
        assert set(plan.waiting) == set(first.waiting)
        assert not started & set(plan.rehosts)
        started |= set(plan.rehosts)


@settings(max_examples=200, deadline=None)
@given(clusters())
def test_every_job_gets_its_turn(seen):
    """When every loading ends, nothing is blocked and running jobs end one after another, all that is queued starts."""
    actors = [
        replace(
            a,
            state=ActorState.READY if a.base_model else ActorState.EMPTY,
            memory_limit=a.memory_limit or FIXED + 90 * MIB,
        )
        for a in seen.actors
    ]
    seen = view([replace(j, queued_at=-PATIENCE_S) for j in seen.jobs], actors)
    for _ in range(60):
        plan = decide(seen)
        seen = carry_out(seen, plan)
        running = [j for j in seen.jobs if j.actor is not None]
        if not running and not plan.rehosts:
            break
        seen = view(
            [j for j in seen.jobs if j is not (running or [None])[0]],
            [replace(a, state=ActorState.READY) if a.state is ActorState.STARTING else a for a in seen.actors],
        )
    hostable = {ref for a in seen.actors for ref in ([a.pinned] if a.pinned else BASES)}
    assert [j.id for j in seen.jobs if j.base_model in hostable] == []
