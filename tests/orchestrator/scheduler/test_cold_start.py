"""The first minute of a cluster where nothing was measured: jobs are not taken off because a guess was wrong."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from orchestrator.control.live_progress import is_settled
from orchestrator.scheduler.estimate import SpeedFit
from orchestrator.scheduler.policy import decide
from orchestrator.scheduler.view import ActorShape, ActorState, ActorView, ClusterView, JobView, MemoryModel, SpeedModel

SHAPE = ActorShape("cpu", token_budget=4096)
BELIEVED = 20  # steps, as in the profiles of the cluster
SWAP = 2.0
factors = st.floats(-1, 1).map(lambda power: 10.0**power)


class ColdCluster:
    """Actors that train jobs at a true speed, and a scheduler that has a guess of it until it has measured."""

    def __init__(self, jobs, actors, speed, prior, seed):
        self.jobs = {j.id: j for j in jobs}
        self.left = {j.id: float(j.steps_left) for j in jobs}
        self.done, self.began_at = Counter(), Counter()  # steps
        self.ready = {}  # job -> when it trains
        self.names, self.speed, self.fit, self.samples = [f"x{n}" for n in range(actors)], speed, SpeedFit(prior), 0
        self.taken_off, self.sent_back, self.steps_when_off = Counter(), Counter(), []
        self.random = np.random.default_rng(seed)

    def look(self, now):
        jobs = []
        for j in self.jobs.values():
            steps = self.done[j.id] - self.began_at[j.id]
            movable = j.actor is not None and is_settled(now - self.ready[j.id], steps, somebody_came=False)
            jobs.append(replace(j, steps_left=max(1, int(np.ceil(self.left[j.id]))), movable=movable))
        doubt = self.fit.doubt if self.samples >= BELIEVED else np.inf
        known = {"speeds": {"A": self.fit.model}, "memories": {"A": MemoryModel(0.0, 0.0)}, "doubts": {"A": doubt}}
        places = [
            ActorView(name, name, ActorState.READY, SHAPE, "A", swap_seconds=SWAP, **known) for name in self.names
        ]
        return ClusterView(tuple(jobs), tuple(places), {}, now)

    def act(self, plan, now):
        self.sent_back.update(list(plan.preemptions))
        for name in (*plan.preemptions, *plan.moves):
            self.jobs[name] = replace(self.jobs[name], actor=None, queued_at=now, started=True)
            self.taken_off[name] += 1
            self.steps_when_off.append(self.done[name] - self.began_at[name])
        for name, place in {**plan.placements, **plan.after}.items():
            self.jobs[name] = replace(self.jobs[name], actor=place)
            self.ready[name], self.began_at[name] = now + SWAP, self.done[name]

    def train(self, now):
        """For a second."""
        for name in self.names:
            here = [j for j in self.jobs.values() if j.actor == name and self.ready[j.id] <= now]
            if not here:
                continue
            step = self.speed.step_seconds + sum(self.speed.added(j.tokens, SHAPE.token_budget) for j in here)
            for _ in range(min(3, round(1 / step))):
                measured = step * float(np.exp(self.random.normal(0, 0.05)))
                self.fit.observe(sum(j.tokens for j in here), len(here), measured)
                self.samples += 1
            for j in here:
                self.left[j.id] -= 1 / step
                self.done[j.id] += 1 / step
                if self.left[j.id] <= 0:
                    del self.jobs[j.id]

    def play(self, seconds):
        for now in range(seconds):
            self.act(decide(self.look(float(now)), "cosrpt"), float(now))
            self.train(float(now))


def jobs_of(drawn):
    return [
        JobView(f"j{n}", "A", 0, n, 1, tokens, steps_left=steps, steps_total=steps)
        for n, (steps, tokens) in enumerate(drawn)
    ]


@settings(max_examples=12, deadline=None, phases=[Phase.generate])
@given(
    st.lists(st.tuples(st.integers(5, 400), st.sampled_from([50, 200, 800])), min_size=2, max_size=10),
    st.integers(1, 3),
    st.tuples(factors, factors, factors),
    st.integers(0, 99),
)
def test_in_the_first_minute_nobody_is_sent_back_twice_whatever_the_guess(drawn, actors, wrong, seed):
    """Who goes on at once on another actor that has become vacant is not sent back to the queue."""
    speed = SpeedModel(0.2, 5e-4, 0.02)
    prior = SpeedModel(speed.step_seconds * wrong[0], speed.token_seconds * wrong[1], speed.adapter_seconds * wrong[2])
    cluster = ColdCluster(jobs_of(drawn), actors, speed, prior, seed)
    cluster.play(60)
    assert max(cluster.sent_back.values(), default=0) <= 1
    assert max(cluster.taken_off.values(), default=0) <= 2


@pytest.mark.parametrize("wrong", [0.1, 1.0, 10.0])
def test_who_has_just_begun_goes_on_when_the_guess_turns_out_wrong(wrong):
    """Six jobs like the demo's at once; nobody leaves before the tenth step."""
    speed = SpeedModel(0.5, 1e-3, 0.05)
    prior = SpeedModel(0.5 * wrong, 1e-3 / wrong, 0.05)
    drawn = [(30, 400), (60, 150), (40, 800), (25, 200), (90, 100), (50, 300)]
    cluster = ColdCluster(jobs_of(drawn), 1, speed, prior, 0)
    cluster.play(60)
    assert all(steps >= 10 for steps in cluster.steps_when_off)


@pytest.mark.parametrize(("doubt", "leaves"), [(0.0, True), (0.1, True), (np.inf, False)])
def test_until_a_speed_is_measured_plans_only_add(doubt, leaves):
    """A long job runs whose steps nobody should share, and a short one comes: of its own base model, or of another."""
    for base in "AB":
        long = JobView("long", "A", 0, 0, 1, 4000, "x", 10_000, movable=True)
        short = JobView("short", base, 0, 1, 1, 4000, None, 10)
        known = {"speeds": dict.fromkeys("AB", SpeedModel(0.01, 1e-3, 0.0)), "memories": {}, "load_seconds": 5.0}
        known["memories"] = dict.fromkeys("AB", MemoryModel(0.0, 0.0))
        place = ActorView("x", "x", ActorState.READY, SHAPE, "A", doubts=dict.fromkeys("AB", doubt), **known)
        plan = decide(ClusterView((long, short), (place,), {}), "cosrpt")
        assert set(plan.preemptions) == ({"long"} if leaves else set())
