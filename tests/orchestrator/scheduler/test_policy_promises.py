"""What every policy promises, on random clusters."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.scheduler.policy import PATIENCE_S, POLICIES, decide
from orchestrator.scheduler.view import ActorState, ClusterView, JobView
from support.clusters import CAPPED, SPEEDS, actor, carry_out, clusters, leave, policies, used

many = settings(max_examples=150)


def without_who_comes_back(seen, policy):
    """A policy that takes nobody off changes base models last: who leaves and comes back may find one host more."""
    if POLICIES[policy].preempts:
        return seen
    return replace(seen, jobs=tuple(j for j in seen.jobs if not j.leaving))


@many
@given(clusters(alone=True), policies)
def test_no_job_is_lost_or_doubled(seen, policy):
    plan = decide(seen, policy)
    queued = sorted(j.id for j in seen.jobs if j.actor is None)
    running = {j.id for j in seen.jobs if j.actor is not None}
    assert sorted([*plan.placements, *plan.waiting, *plan.rejections]) == queued
    assert all([*plan.waiting.values(), *plan.rejections.values(), *plan.preemptions.values()])
    assert not set(plan.preemptions) & set(plan.moves)
    assert {*plan.preemptions, *plan.moves} <= running
    assert set(plan.after) <= {*plan.waiting, *plan.moves, *(j.id for j in seen.jobs if j.leaving and j.returns)}
    ordered = [job for jobs in plan.order.values() for job in jobs]
    assert len(set(ordered)) == len(ordered)


@many
@given(clusters(alone=True), policies)
def test_only_movable_jobs_on_ready_actors_leave_and_only_where_the_policy_preempts(seen, policy):
    plan = decide(seen, policy)
    actors = {a.id: a for a in seen.actors}
    for j in seen.jobs:
        if j.id in plan.preemptions or j.id in plan.moves:
            assert j.movable
            assert POLICIES[policy].preempts
            assert actors[j.actor].state is ActorState.READY
            assert plan.moves.get(j.id) != j.actor


@many
@given(clusters(alone=True), policies, st.booleans())
def test_no_plan_goes_over_memory_or_onto_the_wrong_actor(seen, policy, room_made):
    plan = decide(seen, policy)
    after = carry_out(seen, plan, room_made=room_made)
    if room_made:
        after = replace(after, jobs=tuple(replace(j, actor=plan.after.get(j.id, j.actor)) for j in after.jobs))
    actors = {a.id: a for a in seen.actors}
    for at in seen.actors:
        here = [j for j in after.jobs if j.actor == at.id]
        assert len(here) < 2 or not any(j.alone for j in here)
    for name, place in {**plan.placements, **(plan.after if room_made else {})}.items():
        at = actors[place]
        base = next(j.base_model for j in seen.jobs if j.id == name)
        assert at.state is ActorState.READY
        assert at.base_model == base
        assert used(after.jobs, at) <= at.memory_limit


@many
@given(clusters(), policies)
def test_bases_change_only_on_idle_actors_that_may(seen, policy):
    plan = decide(seen, policy)
    for name, ref in plan.rehosts.items():
        at = next(a for a in seen.actors if a.id == name)
        assert at.state in (ActorState.EMPTY, ActorState.READY)
        assert at.base_model != ref
        assert at.pinned in (None, ref)
        assert ref not in at.barred
        assert not [j for j in seen.jobs if j.actor == name]
        assert name not in plan.placements.values()
        assert name not in plan.after.values()


@many
@given(clusters(), policies, st.randoms())
def test_the_same_view_gives_the_same_plan_in_whatever_order_it_is_seen(seen, policy, random):
    jobs, actors = list(seen.jobs), list(seen.actors)
    random.shuffle(jobs)
    random.shuffle(actors)
    assert decide(replace(seen, jobs=tuple(jobs), actors=tuple(actors)), policy) == decide(seen, policy)


@many
@given(clusters(), policies)
def test_a_plan_carried_out_starts_no_further_job(seen, policy):
    """It may start further actors, each at most once: then nothing is left to do."""
    seen = without_who_comes_back(seen, policy)
    plan = decide(seen, policy)
    first, started = plan, set(plan.rehosts)
    while plan.rehosts or plan is first:
        seen = carry_out(seen, plan)
        plan = decide(seen, policy)
        assert (plan.placements, plan.rejections) == ({}, {})
        assert (plan.preemptions, plan.moves, plan.after) == ({}, {}, first.after)
        assert set(plan.waiting) == set(first.waiting)
        assert not started & set(plan.rehosts)
        started |= set(plan.rehosts)


def test_who_is_turned_out_counts_on_a_place_that_is_loading_as_it_will_when_it_is_off():
    """Or one behind it would count on that place, and start elsewhere once the next plan shows who takes it."""

    def job(name, arrival, size, steps, **more):
        return JobView(name, "C", 0, arrival, size, 8, None, steps, steps, submitted_at=0.0, queued_at=0.0, **more)

    out = replace(job("out", 0, 5, 1), actor="x", worst_tokens=64, steps_total=51, movable=True)
    jobs = [out, job("behind", 1, 1, 2)]
    for old in (
        replace(job("heavy", 2, 1, 450), priority=2),
        replace(job("last", 3, 70, 1003), priority=3, steps_total=1053, worst_tokens=64),
    ):
        jobs.append(replace(old, submitted_at=-1e4, queued_at=-1e4))
    places = (
        actor("x", "C", 73, ActorState.READY, None, CAPPED),
        actor("y", "C", None, ActorState.STARTING, None, CAPPED),
        actor("full", "C", 0, ActorState.READY, None, CAPPED),
    )
    seen = ClusterView(tuple(jobs), places, {})
    plan = decide(seen, "cosrpt")
    assert set(plan.preemptions) == {"out"}
    assert decide(carry_out(seen, plan), "cosrpt").placements == {}


@many
@given(clusters(), policies)
@pytest.mark.slow
def test_when_those_who_leave_are_off_the_next_plan_does_as_was_said(seen, policy):
    seen = without_who_comes_back(seen, policy)
    first = decide(seen, policy)
    off = carry_out(seen, first, room_made=True)
    second = decide(off, policy)
    assert second.placements == first.after
    assert (second.preemptions, second.moves, second.after) == ({}, {}, {})
    third = decide(carry_out(off, second), policy)
    assert (third.placements, third.preemptions, third.moves, third.after) == ({}, {}, {}, {})


@settings(max_examples=500)
@given(
    clusters(alone=True), st.sampled_from(sorted(name for name in POLICIES if POLICIES[name].preempts)), st.randoms()
)
@pytest.mark.slow
def test_while_they_leave_one_after_the_other_nobody_else_has_to(seen, policy, random):
    """Between a plan and the last checkpoint that it asks for there are many looks at the cluster.

    Nor does anybody start on a place that is being emptied for another base model.
    """
    first = decide(seen, policy)
    emptied = {j.actor for j in seen.jobs if j.id in {*first.preemptions, *first.moves}}
    emptied -= {j.actor for j in seen.jobs if j.id not in {*first.preemptions, *first.moves} and not j.leaving}
    emptied -= {*first.placements.values(), *first.after.values()}
    seen = carry_out(seen, first)
    leaving = [j.id for j in seen.jobs if j.leaving]
    random.shuffle(leaving)
    while leaving:
        plan = decide(seen, policy)
        assert (plan.preemptions, plan.moves) == ({}, {})
        assert emptied.isdisjoint(plan.placements.values())
        seen = leave(carry_out(seen, plan), [leaving.pop()])


@many
@given(clusters(), policies, st.data())
def test_a_job_with_more_priority_is_never_worse_off(seen, policy, data):
    """Who runs after a plan still runs after it when his priority is higher."""
    plan = decide(seen, policy)
    stays = {j.id for j in seen.jobs if j.actor is not None and not j.leaving}
    runs = stays - {*plan.preemptions} | {*plan.placements, *plan.after}
    if not runs:
        return
    chosen = data.draw(st.sampled_from(sorted(runs)))
    raised = tuple(replace(j, priority=j.priority + 3) if j.id == chosen else j for j in seen.jobs)
    plan = decide(replace(seen, jobs=raised), policy)
    loading = {a.id for a in seen.actors if a.state is ActorState.STARTING}
    assert (
        chosen in {*plan.placements, *plan.after}
        or chosen in stays - {*plan.preemptions}
        or (loading and "is being loaded on" in plan.waiting.get(chosen, ""))
    )


@settings(max_examples=40)
@given(clusters(alone=True), policies)
def test_every_job_gets_its_turn(seen, policy):
    """When every loading ends, nothing is blocked and running jobs end one after another, all that is queued starts."""
    actors = tuple(
        replace(
            a,
            state=ActorState.READY if a.base_model else ActorState.EMPTY,
            memory_limit=a.memory_limit or 145,
            barred={},
        )
        for a in seen.actors
    )
    seen = replace(seen, actors=actors)
    for _ in range(60):
        seen = replace(seen, now=seen.now + PATIENCE_S)
        rehosts = 0
        for _ in range(2):
            plan = decide(seen, policy)
            rehosts += len(plan.rehosts)
            seen = carry_out(seen, plan, room_made=True)
        running = [j for j in seen.jobs if j.actor is not None]
        if not running and not rehosts:
            break
        seen = replace(
            seen,
            jobs=tuple(j for j in seen.jobs if j is not (running or [None])[0]),
            actors=tuple(
                replace(a, state=ActorState.READY) if a.state is ActorState.STARTING else a for a in seen.actors
            ),
        )
    hostable = {ref for a in seen.actors for ref in ([a.pinned] if a.pinned else SPEEDS)}
    assert [j.id for j in seen.jobs if j.base_model in hostable] == []


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_an_empty_cluster_has_an_empty_plan(policy):
    plan = decide(ClusterView((), (), {}), policy)
    assert plan == decide(ClusterView((), (), {}), policy)
    assert not plan.waiting
