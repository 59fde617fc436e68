"""What is the same under every policy, rule by rule: the policy `fifo-memory` has no wishes beyond them."""

from dataclasses import replace
from functools import partial

import pytest

from gpu_actor.contract.description import BaseDescription, LinearShape
from orchestrator.scheduler import estimate, policy
from orchestrator.scheduler.policy import PATIENCE_S
from orchestrator.scheduler.view import ActorShape, ActorState, ActorView, ClusterView, JobView, MemoryModel, SpeedModel
from support.house import fixed_bytes

MIB = 2**20
decide = partial(policy.decide, policy="fifo-memory")
SHAPE = ActorShape("cpu", token_budget=64)


def base(ref, megabytes=40):
    return BaseDescription(
        ref, "llama", (LinearShape("model.layers.0.q_proj", 64, 64),), 64, 1, 128, megabytes * MIB // 4
    )


BASES = {ref: base(ref, size) for ref, size in (("A", 40), ("B", 40), ("C", 80))}
FIXED = fixed_bytes(BASES["A"], SHAPE)  # of A and of B


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
    guess = estimate.prior_memory(BASES["A"], SHAPE)
    excess = round(guess.bytes_per_token * (64 * 64 - 64))
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


@pytest.mark.parametrize("name", ["srpt", "cosrpt"])
@pytest.mark.parametrize(("seconds", "changes"), [(1.0, True), (10_000.0, False)])
def test_a_place_changes_its_base_for_work_that_is_worth_that_bases_loading(name, seconds, changes):
    """Many short jobs for B on one place of two that host it; the other hosts A, for which nobody waits."""
    jobs = [replace(job(f"b{n}", "B", arrival=n), steps_left=200) for n in range(20)]
    places = [actor("x", "A"), actor("y", "B")]
    places = [replace(place, loads={"A": 1.0, "B": seconds}, load_seconds=1.0) for place in places]
    assert bool(policy.decide(view(jobs, places), name).rehosts) == changes


@pytest.mark.parametrize("name", sorted(policy.POLICIES))
def test_a_place_that_has_just_failed_to_load_a_base_leaves_it_to_others(name):
    """Places are alike but for that; and a job is not refused because the only place with room for it has failed."""
    failed = replace(actor("x", None, state=ActorState.EMPTY), barred={"A": "its disk is full"})
    seen = view([job("a", waited=10 * PATIENCE_S)], [failed, actor("y", None, state=ActorState.EMPTY)])
    assert policy.decide(seen, name).rehosts == {"y": "A"}
    plan = policy.decide(view(seen.jobs, [failed, actor("y", None, room=1, state=ActorState.EMPTY)]), name)
    assert (plan.rehosts, plan.rejections) == ({}, {})
    assert plan.waiting["a"] == "no actor hosts A and x: could not load it: its disk is full"
    assert policy.decide(view([job("b", "B")], [failed]), name).rehosts == {"x": "B"}


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


def three_jobs_and_two_actors(**changes):
    """j2 is short and comes last; each actor has room for one job."""
    jobs = {
        "j1": replace(job("j1", actor="x", arrival=0), steps_left=3000, movable=True),
        "j4": replace(job("j4", actor="y", arrival=1), steps_left=1000, movable=True),
        "j2": replace(job("j2", arrival=2), steps_left=100),
    }
    jobs |= {name: replace(jobs[name], **change) for name, change in changes.items()}
    return view(jobs.values(), [actor("x", room=15), actor("y", room=15)])


@pytest.mark.parametrize("name", ["srpt", "cosrpt"])
def test_while_one_makes_room_nobody_else_has_to(name):
    plan = policy.decide(three_jobs_and_two_actors(), name)
    assert (set(plan.preemptions), plan.after) == ({"j1"}, {"j2": "x"})
    leaving = three_jobs_and_two_actors(j1={"movable": False, "leaving": True})
    plan = policy.decide(leaving, name)
    assert (plan.preemptions, plan.moves, plan.placements, plan.after) == ({}, {}, {}, {"j2": "x"})
    assert plan.waiting == {"j2": "starts on x once a job that gives way has left it"}


@pytest.mark.parametrize("name", sorted(policy.POLICIES))
def test_a_job_that_leaves_for_good_takes_memory_and_no_place(name):
    """Without it the others are planned as if it were not there; its bytes are free when it is off."""
    jobs = [replace(job("gone", actor="x"), leaving=True, returns=False), job("next", arrival=1)]
    plan = policy.decide(view(jobs, [actor("x", room=15)]), name)
    assert (plan.placements, plan.after, set(plan.waiting)) == ({}, {"next": "x"}, {"next"})
    assert policy.decide(view(jobs, [actor("x", room=25)]), name).placements == {"next": "x"}


def test_a_place_that_changes_its_base_stays_closed_until_the_last_job_is_off():
    """B waits with much more work than A has left: x changes, and its two jobs leave one after the other."""
    jobs = [replace(job(f"a{n}", actor="x", arrival=n), steps_left=10, movable=True) for n in range(2)]
    jobs += [replace(job("old", actor="y"), steps_left=10**4)]
    jobs += [replace(job(f"b{n}", "B", arrival=9), submitted_at=-1e6, steps_left=10**4) for n in range(9)]
    actors = [actor("x"), actor("y")]
    plan = policy.decide(view(jobs, actors), "cosrpt")
    assert {*plan.preemptions, *plan.moves} == {"a0", "a1"}
    jobs[0] = replace(jobs[0], actor=None)
    jobs[1] = replace(jobs[1], movable=False, leaving=True)
    plan = policy.decide(view(jobs, actors), "cosrpt")
    assert "x" not in {**plan.placements, **plan.after}.values()
    assert plan.rehosts == {}
    jobs[1] = replace(jobs[1], actor=None, leaving=False)
    assert policy.decide(view(jobs, actors), "cosrpt").rehosts == {"x": "B"}


@pytest.mark.parametrize("name", sorted(policy.POLICIES))
def test_a_job_that_has_trained_waits_with_the_same_words_when_the_memory_no_longer_suffices(name):
    """The fit of its base model has drifted, or its actor came back with less: nothing accepted is lost for that."""
    begun = replace(job("begun"), started=True)
    actors = [actor("x", room=9)]
    plan = policy.decide(view([begun, job("fresh", size=5, arrival=1)], actors), name)
    assert plan.rejections == {}
    assert plan.placements == {"fresh": "x"}
    assert plan.waiting["begun"].startswith("needs ")
    assert f"({FIXED + 9 * MIB} bytes)" in plan.waiting["begun"]
    assert set(policy.decide(view([job("new")], actors), name).rejections) == {"new"}


@pytest.mark.parametrize(("guessed", "measured", "rejected"), [(9, 9, True), (20, 9, False), (9, 20, False)])
def test_a_fresh_job_is_refused_only_if_the_guess_and_the_measurement_both_say_no(guessed, measured, rejected):
    """A guess can be far off, and a fit wavers; the room is what each leaves of the limit."""
    guess = estimate.prior_memory(BASES["A"], SHAPE)
    place = actor("x", room=guessed)
    fit = replace(guess, fixed_bytes=guess.fixed_bytes + (guessed - measured) * MIB)
    plan = decide(view([job("j")], [replace(place, memories={"A": fit})]))
    assert (set(plan.rejections) == {"j"}) == rejected
    assert (plan.placements == {"j": "x"}) == (measured == 20)


def test_who_came_to_share_a_step_does_not_turn_out_the_one_that_was_there():
    """Until it is movable it stays whatever happens: to those ahead of it in the order it is no company yet."""
    here = replace(job("here", actor="x", tokens=200), steps_left=1, steps_total=1, movable=True)
    heavy = replace(job("heavy", priority=3, arrival=1), steps_left=400, steps_total=400)
    fast = {"speeds": {"A": SpeedModel(0.1, 1e-3, 0.0)}, "memories": {"A": MemoryModel(0.0, 0.0)}}
    seen = view([here, heavy], [replace(actor("x", room=None), **fast)])
    plan = policy.decide(seen, "cosrpt")
    assert plan.order == {"x": ("here", "heavy")}
    assert plan.placements == {"heavy": "x"}
    plan = policy.decide(carry_out(seen, plan), "cosrpt")
    assert (plan.preemptions, plan.order) == ({}, {"x": ("here", "heavy")})
