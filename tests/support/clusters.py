"""Random clusters for hypothesis, and what becomes of one when a plan is carried out."""

from dataclasses import replace

from hypothesis import strategies as st

from orchestrator.scheduler.policy import PATIENCE_S, POLICIES
from orchestrator.scheduler.view import (
    ActorShape,
    ActorState,
    ActorView,
    ClusterView,
    JobSize,
    JobView,
    MemoryModel,
    SpeedModel,
)

SHAPE = ActorShape("cuda", token_budget=64)
SLOW = ActorShape("cpu", token_budget=32)
SPEEDS = {"A": SpeedModel(0.1, 1e-3, 0.01), "B": SpeedModel(0.05, 2e-4, 0.01), "C": SpeedModel(0.2, 1e-3, 0.01)}
CRAWLING = {ref: SpeedModel(9 * s.step_seconds, 30 * s.token_seconds, 0.01) for ref, s in SPEEDS.items()}
CAPPED = {ref: MemoryModel(size, 0.2, 64) for ref, size in (("A", 40), ("B", 40), ("C", 80))}
SUMMED = {ref: MemoryModel(size, 0.2) for ref, size in (("A", 40), ("B", 40), ("C", 80))}

refs = st.sampled_from("ABC")
policies = st.sampled_from(sorted(POLICIES))


def actor(name, hosts, room, state, pinned, models):
    limit = None if room is None else 55 + room
    return ActorView(name, name, state, SHAPE, hosts, pinned, limit, "blocked", SPEEDS, models)


def used(jobs, at):
    """Bytes of an actor by its memory model."""
    here = [j for j in jobs if j.actor == at.id]
    if not here:
        return 0.0
    model = at.memories[at.base_model]
    sizes = [j.size_on(at.shape.device) for j in here]
    tokens = [size.worst_tokens for size in sizes]
    activations = sum(tokens) if model.token_cap is None else max(model.token_cap, *tokens)
    return model.fixed_bytes + sum(size.bytes for size in sizes) + model.bytes_per_token * activations


def bears(jobs, new, at):
    """Whether a job may join those of an actor: neither is one that shares it with nobody."""
    here = [j for j in jobs if j.actor == at.id]
    return not here or not (new.alone or any(j.alone for j in here))


@st.composite
def clusters(draw, alone=False):
    """A cluster; with jobs among them that share no place, if they may."""
    models = draw(st.sampled_from([CAPPED, SUMMED]))
    actors = []
    for number in range(draw(st.integers(0, 5))):
        state = draw(st.sampled_from(ActorState))
        pinned = draw(st.none() | refs)
        hosts = None if state is ActorState.EMPTY else pinned or draw(refs)
        rooms = st.integers(0, 120)
        known = rooms if state is ActorState.READY else st.none() | rooms
        bars = {ref: "it failed" for ref in draw(st.sampled_from(["", "", "A", "BC"])) if ref != hosts}
        kind = {"shape": SLOW, "speeds": CRAWLING} if draw(st.integers(0, 2)) == 2 else {}
        actors.append(replace(actor(f"x{number}", hosts, draw(known), state, pinned, models), barred=bars, **kind))
    jobs = []
    for number in range(draw(st.integers(0, 14))):
        age = draw(st.sampled_from([0.0, PATIENCE_S, 1e4]))
        steps = draw(st.integers(1, 2000))
        j = JobView(
            f"j{number}",
            draw(refs),
            draw(st.integers(-1, 3)),
            number,
            adapter_bytes=draw(st.integers(1, 70)),
            worst_tokens=draw(st.sampled_from([8, 64, 200])),
            steps_left=steps,
            steps_total=steps + draw(st.sampled_from([0, 50])),
            submitted_at=-age,
            queued_at=-age,
            movable=draw(st.booleans()),
            alone=alone and draw(st.integers(0, 5)) == 5,
        )
        if draw(st.booleans()):
            j = replace(j, sizes={"cpu": JobSize(draw(st.integers(1, 70)), min(j.worst_tokens, 32))})
        busy = [a for a in actors if a.base_model == j.base_model and a.state in (ActorState.READY, ActorState.BLOCKED)]
        at = draw(st.sampled_from([None, *busy]))
        if (
            at is not None
            and bears(jobs, j, at)
            and used([*jobs, replace(j, actor=at.id)], at) <= (at.memory_limit or 0)
        ):
            j = replace(j, actor=at.id)
            if draw(st.integers(0, 4)) == 4:
                j = replace(j, movable=False, leaving=True, returns=draw(st.booleans()))
        jobs.append(j)
    if draw(st.booleans()):  # of a base model without a job nothing need be known
        named = {j.base_model for j in jobs}
        actors = [
            replace(a, **{kind: {ref: getattr(a, kind)[ref] for ref in named} for kind in ("speeds", "memories")})
            for a in actors
        ]
    return ClusterView(draw(st.permutations(jobs).map(tuple)), draw(st.permutations(actors).map(tuple)), {})


def leave(seen, names):
    """The cluster once some jobs are off their actors."""
    jobs = []
    for j in seen.jobs:
        if j.id not in names:
            jobs.append(j)
        elif j.returns:
            jobs.append(replace(j, actor=None, leaving=False, queued_at=seen.now))
    return replace(seen, jobs=tuple(jobs))


def carry_out(seen, plan, *, room_made=False):
    """The cluster after a plan: its placements, and those who leave are on their way; if room is made, they are off."""
    told = {*plan.preemptions, *plan.moves}
    jobs = []
    for j in seen.jobs:
        if j.id in plan.placements:
            j = replace(j, actor=plan.placements[j.id])
        elif j.id in told:
            j = replace(j, movable=False, leaving=True)
        if j.id not in plan.rejections:
            jobs.append(j)
    actors = [
        replace(a, base_model=plan.rehosts[a.id], state=ActorState.STARTING) if a.id in plan.rehosts else a
        for a in seen.actors
    ]
    seen = ClusterView(tuple(jobs), tuple(actors), {}, seen.now)
    return leave(seen, [j.id for j in jobs if j.leaving]) if room_made else seen
