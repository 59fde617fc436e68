"""What is answered between two full plans, on random clusters and for a few by hand."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.scheduler.incremental import IncrementalPlan
from orchestrator.scheduler.policy import PATIENCE_S, POLICIES, decide
from orchestrator.scheduler.view import ActorState, ClusterView, JobView
from support.clusters import CAPPED, SPEEDS, SUMMED, actor, carry_out, clusters, leave, policies, refs, used

many = settings(max_examples=60)


def job(name, arrival=99, base="A", steps=100, size=10, **fields):
    return JobView(name, base, 0, arrival, size, 8, steps_left=steps, **fields)


def described(seen):
    """With every base model known everywhere: a job of any may come."""
    models = [model for a in seen.actors for model in a.memories.values()]
    memories = SUMMED if any(model.token_cap is None for model in models) else CAPPED
    return replace(seen, actors=tuple(replace(a, speeds=SPEEDS, memories=memories) for a in seen.actors))


@st.composite
def events(draw, seen, number):
    """One arrival, one end on an actor, one job out of the queue, or one that was told to leave is off."""
    waiting, running, leaving = (
        sorted(j.id for j in seen.jobs if which(j))
        for which in (
            lambda j: j.actor is None,
            lambda j: j.actor is not None and not j.leaving,
            lambda j: j.leaving,
        )
    )
    kind = draw(st.sampled_from(["arrival", "arrival", "end", "end", "end", "out", "left"]))
    if kind == "arrival":
        size, steps = draw(st.integers(1, 70)), draw(st.integers(1, 2000))
        new = job(f"n{number}", 100 + number, draw(refs), steps, size, queued_at=seen.now, submitted_at=seen.now)
        return replace(new, priority=draw(st.integers(-1, 3)), worst_tokens=draw(st.sampled_from([8, 64, 200]))), None
    some = {"end": running, "out": waiting, "left": leaving}[kind]
    return None, (kind, draw(st.sampled_from(some))) if some else None


def happen(seen, event):
    """The cluster after an event, who arrived and who is gone."""
    new, gone = event
    if new is not None:
        return replace(seen, jobs=(*seen.jobs, new)), [new], []
    if gone is None:
        return seen, [], []
    if gone[0] == "left":
        after = leave(seen, [gone[1]])
        return after, [j for j in after.jobs if j.id == gone[1]], [gone[1]]
    return replace(seen, jobs=tuple(j for j in seen.jobs if j.id != gone[1])), [], [gone[1]]


def check_state(plan, seen, policy):
    """The columns of every open place are those of the jobs that are there, counted anew."""
    places, jobs = plan._places, plan._jobs
    for number, view in enumerate(places.views):
        if places.base[number] < 0:
            continue
        there = [j for j in seen.jobs if j.actor == view.id]
        assert sorted(jobs.views[n].id for n in places.planned[number]) == sorted(j.id for j in there)
        assert places.jobs_on[number] == len(there)
        sizes = [j.size_on(view.shape.device) for j in there]
        assert places.room.adapters[number] == sum(size.bytes for size in sizes)
        tokens = [size.worst_tokens for size in sizes]
        cap = places.room.caps[number]
        assert places.room.tokens[number] == (sum(tokens) if cap < 0 else max([cap, *tokens]))
        rows = [[jobs.left[n], jobs.weight[n], places.added(n)[number]] for n in places.planned[number]]
        assert sorted(places._sharing[:, number, : len(rows)].T.tolist()) == sorted(rows)
        assert not places._sharing[:, number, len(rows) :].any()
        assert places.weight_on[number] == pytest.approx(sum(row[1] for row in rows))
    waiting = {j.id for j in seen.jobs if j.actor is None}
    queue = [jobs.views[n].id for n in range(jobs.count) if plan._queued[n]]
    assert len(queue) == len(set(queue))
    lines = [[n for n in line.tolist() if plan._queued[n]] for line in plan._queue.values()]
    assert sorted(jobs.views[n].id for line in lines for n in line) == sorted(queue)
    assert all(line == [n for n in plan._policy.order().tolist() if n in line] for line in lines)
    assert set(queue) <= waiting
    assert waiting - set(queue) <= {*plan.full.waiting, *plan.full.after, *plan.full.rejections}


@many
@given(clusters(), policies)
def test_it_starts_from_the_plan_that_decide_makes(seen, policy):
    plan = IncrementalPlan(seen, policy)
    assert plan.full == decide(seen, policy)
    check_state(plan, carry_out(seen, plan.full), policy)


@settings(max_examples=120)
@given(clusters().map(described), policies, st.data())
@pytest.mark.slow
def test_answers_keep_to_memory_to_base_models_and_to_what_is_under_way(seen, policy, data):
    """After any events: no job lost or doubled, no actor over memory, nobody where others leave or are still to come,
    and the state is that of the cluster, counted anew. Whoever is answered nothing gets a full plan.
    """
    plan = twin = None
    for number in range(8):
        if plan is None:
            seen = replace(seen, now=seen.now + 1)
            plan, twin = IncrementalPlan(seen, policy), IncrementalPlan(seen, policy)
            full, before = plan.full, seen
            seen = carry_out(seen, full)
        seen, arrived, gone = happen(seen, data.draw(events(seen, number)))
        answer = plan.answer(arrived, gone, seen.now)
        assert answer == twin.answer(arrived, gone, seen.now)
        if answer is None:
            plan = None
            continue
        waiting = {j.id for j in seen.jobs if j.actor is None}
        assert set(answer.placements) <= waiting - {*full.after, *full.rejections}
        assert answer == replace(answer, preemptions={}, moves={}, after={}, rehosts={}, rejections={}, waiting={})
        shut = {*full.after.values(), *full.rehosts, *(j.actor for j in before.jobs if j.leaving)}
        shut |= {j.actor for j in before.jobs if j.id in {*full.preemptions, *full.moves}}
        assert shut.isdisjoint(answer.placements.values())
        seen = carry_out(seen, answer)
        actors = {a.id: a for a in seen.actors}
        for name, place in answer.placements.items():
            assert actors[place].state is ActorState.READY
            assert actors[place].base_model == next(j.base_model for j in seen.jobs if j.id == name)
            assert used(seen.jobs, actors[place]) <= actors[place].memory_limit
            assert plan.place_of(name) == place
        most = {"fifo": 1, "srpt": 1, "fifo-4": 4}.get(policy, 99)
        assert all(len(answer.order[place]) <= most for place in answer.placements.values())
        for place, ids in answer.order.items():
            assert sorted(ids) == sorted(j.id for j in seen.jobs if j.actor == place)
        check_state(plan, seen, policy)


@settings(max_examples=120)
@given(clusters().map(described), policies, st.data())
def test_what_starts_in_between_fits_the_policy(seen, policy, data):
    """Where everything else stands still, a full plan without pre-emption lets nobody start whom the answer left out
    on the place that somebody has left."""
    seen = replace(seen, jobs=tuple(replace(j, movable=False) for j in seen.jobs if not j.leaving))
    plan = IncrementalPlan(seen, policy)
    seen = carry_out(seen, plan.full)
    running = sorted(j.id for j in seen.jobs if j.actor is not None)
    if plan.full.rehosts or plan.full.after or not running:
        return
    chosen = data.draw(st.sampled_from(running))
    place = next(j.actor for j in seen.jobs if j.id == chosen)
    seen, _, gone = happen(seen, (None, ("end", chosen)))
    answer = plan.answer([], gone, seen.now)
    if answer is None or policy == "cosrpt":  # the group sizes of the full plan are others then
        return
    seen = carry_out(seen, answer)
    assert place not in decide(seen, policy).placements.values()


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_an_end_gives_its_place_to_the_first_that_fits_and_an_arrival_takes_an_empty_place(policy):
    actors = [actor(f"x{n}", "A", 45, ActorState.READY, None, CAPPED) for n in range(2)]
    jobs = [job("here", 0, size=40, actor="x0"), job("there", 1, size=40, actor="x1"), job("large", 2, size=47)]
    jobs += [job("long", 3, steps=300, size=40), job("short", 4, steps=30, size=40)]
    plan = IncrementalPlan(ClusterView(tuple(jobs), tuple(actors), {}), policy)
    shortest = policy in ("srpt", "cosrpt")
    assert not plan.full.placements
    assert plan.answer([], ["there"], 1.0).placements == {"short" if shortest else "large": "x1"}
    assert plan.answer([job("new", 5, size=40)], [], 1.0).placements == {}
    assert plan.answer([], ["here"], 1.0).placements == {"large" if shortest else "long": "x0"}
    assert plan.answer([], ["large", "long", "short", "new"], 1.0).placements == {}
    assert plan.answer([job("last", 6, size=40)], [], 1.0).placements.keys() == {"last"}


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_nobody_starts_where_somebody_is_about_to_leave(policy):
    """Neither would the bytes of the one who leaves be counted, nor is it known yet for whom the place is."""
    actors = (actor("x0", "A", 45, ActorState.READY, None, CAPPED),)
    gone = job("gone", 0, size=30, actor="x0", leaving=True, returns=False)
    plan = IncrementalPlan(ClusterView((gone, job("b", 1, size=47)), actors, {}), policy)
    assert plan.full.after == {"b": "x0"}
    assert plan.answer([job("new", 2, size=1, steps=1)], [], 1.0).placements == {}
    plan = IncrementalPlan(ClusterView((gone, job("c", 1, actor="x0", size=1)), actors, {}), policy)
    assert plan.answer([job("new", 2, size=40, steps=1)], [], 1.0).placements == {}
    assert plan.answer([], ["c"], 1.0) is None


def test_nobody_starts_where_somebody_still_is_who_will_go_on_elsewhere():
    """By the plan there is room on the place that it leaves; by its memory there is none yet."""
    actors = tuple(actor(f"x{n}", "A", 45, ActorState.READY, None, CAPPED) for n in range(2))
    jobs = tuple(job(name, n, steps=2000, size=20, actor="x0", movable=True) for n, name in enumerate("ab"))
    plan = IncrementalPlan(ClusterView(jobs, actors, {}), "cosrpt")
    assert plan.full.moves.keys() < {"a", "b"}
    assert plan.answer([job("new", 2, size=25, steps=1)], [], 1.0).placements == {}


def test_nobody_starts_on_a_place_that_is_kept():
    """It empties for one that has waited long; what has room there meanwhile would hold it up."""
    actors = (actor("x0", "A", 45, ActorState.READY, None, CAPPED),)
    jobs = (
        job("here", 0, size=20, actor="x0"),
        job("there", 1, size=20, actor="x0"),
        job("old", 2, size=40),
        job("small", 3, size=10, queued_at=PATIENCE_S),
    )
    plan = IncrementalPlan(ClusterView(jobs, actors, {}, now=PATIENCE_S + 1), "fifo-memory")
    assert not plan.full.placements
    assert plan.answer([], ["here"], PATIENCE_S + 2) is None


def test_whoever_comes_later_goes_later():
    """The age of an arrival is counted from where that of the others is."""
    actors = (actor("x0", "A", 45, ActorState.READY, None, CAPPED),)
    jobs = (job("here", 0, actor="x0"), job("early", 1, submitted_at=-3.0, queued_at=-3.0))
    plan = IncrementalPlan(ClusterView(jobs, actors, {}), "fifo")
    assert plan.answer([job("late", 2, submitted_at=50.0, queued_at=50.0)], [], 50.0).placements == {}
    assert plan.answer([], ["here"], 51.0).placements == {"early": "x0"}
    assert plan.answer([], ["early"], 52.0).placements == {"late": "x0"}


def test_what_takes_a_full_plan_has_no_answer():
    actors = (actor("x0", "A", 45, ActorState.READY, None, CAPPED),)
    jobs = (job("long", 0, steps=2000, size=40, actor="x0", movable=True), job("short", 1, steps=1, size=40))

    def plan():
        found = IncrementalPlan(ClusterView(jobs, actors, {}), "srpt")
        assert list(found.full.preemptions) == ["long"]
        return found

    assert plan().answer([], ["long"], 1.0) is None  # whoever leaves makes room for the one that was promised it
    assert plan().answer([job("b", base="B")], [], 1.0) is None  # of a base model that no job had
    assert plan().answer([job("old", queued_at=1.0)], [], 1.0 + PATIENCE_S) is None  # a place may be kept for it
    assert plan().answer([job("new")], [], 1.0).placements == {}  # the place is spoken for


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_an_answer_looks_at_no_job_one_by_one(policy, monkeypatch):
    """Of 3,000 that wait a handful is looked at: the work in Python does not grow with the queue."""
    looks = []

    def counted(self, *arguments, original=POLICIES[policy].takes):
        looks.append(arguments)
        return original(self, *arguments)

    monkeypatch.setattr(POLICIES[policy], "takes", counted)
    actors = tuple(actor(f"x{n:02d}", "A", 60, ActorState.READY, None, CAPPED) for n in range(20))
    jobs = tuple(job(f"j{n:04d}", n, steps=10 + n * 7 % 991, size=30) for n in range(3000))
    plan = IncrementalPlan(ClusterView(jobs, actors, {}), policy)
    on = sorted(plan.full.placements)
    assert on
    looks.clear()
    for number, name in enumerate(on[:10]):
        new = [job(f"n{number}", 5000 + number, size=30, steps=5)]
        assert plan.answer(new, [name], 1.0) is not None
    assert len(looks) <= 60
