"""What would become of a look at the cluster, by closed formulas."""

import math

import pytest

from orchestrator.scheduler.forecast import forecast
from orchestrator.scheduler.policy import POLICIES
from orchestrator.scheduler.view import ActorShape, ActorState, ActorView, ClusterView, JobView, MemoryModel, SpeedModel

SPEED = SpeedModel(1.0, 0.01, 0.5)
MEMORY = MemoryModel(1000.0, 1.0, 500)


def actor(name="a", base="x", state=ActorState.READY, **changes):
    fields = {"swap_seconds": 2.0, "load_seconds": 30.0, "memory_limit": 10_000, "speeds": {"x": SPEED, "y": SPEED}}
    memories = {"x": MEMORY, "y": MEMORY}
    return ActorView(name, name, state, ActorShape("cpu", 500), base, memories=memories, **(fields | changes))


def job(name, steps=10, base="x", tokens=100, at=0.0, size=100, **changes):
    return JobView(
        name, base, 0, int(name[1:]), size, tokens, steps_left=steps, tokens_per_step=tokens, submitted_at=at, **changes
    )


def run(jobs, *actors, policy="fifo-4"):
    return forecast(ClusterView(tuple(jobs), actors, {}), policy)


def test_a_job_alone_takes_its_steps_and_the_time_to_start():
    found = run([job("j0", steps=10)], actor())["j0"]
    assert found.place == "a"
    assert found.start == 2.0
    assert found.finish == pytest.approx(2.0 + 10 * (1.0 + 0.01 * 100 + 0.5))
    assert found.needs == 1000 + 500 + 100


def test_company_shares_the_fixed_cost_until_the_shorter_one_ends():
    found = run([job("j0", steps=10), job("j1", steps=4)], actor())
    together, alone = 1.0 + 2 * 1.5, 1.0 + 1.5
    assert found["j1"].finish == pytest.approx(2.0 + 4 * together)
    assert found["j0"].finish == pytest.approx(2.0 + 4 * together + 6 * alone)
    assert found["j0"].company == {"j1"}


def test_a_base_that_nobody_hosts_is_loaded_first():
    found = run([job("j0", base="y")], actor())["j0"]
    assert found.start == pytest.approx(30.0 + 2.0)


def test_each_base_takes_its_own_time_to_load():
    found = run([job("j0", base="y"), job("j1", base="x", at=300.0)], actor(loads={"y": 90.0}))
    assert found["j0"].start == pytest.approx(90.0 + 2.0)
    assert found["j1"].start == pytest.approx(300.0 + 30.0 + 2.0)
    starting = actor(base="y", state=ActorState.STARTING, loads={"y": 50.0, "x": 7.0})
    assert run([job("j0", base="y")], starting)["j0"].start == pytest.approx(50.0 + 2.0)


def test_a_job_that_is_there_goes_on_at_once_and_a_later_one_comes_later():
    found = run([job("j0", steps=10, actor="a"), job("j1", steps=1, at=100.0)], actor())
    assert found["j0"].finish == pytest.approx(10 * 2.5)
    assert found["j1"].finish == pytest.approx(100.0 + 2.0 + 2.5)


def test_what_never_fits_is_told_and_harms_nobody():
    found = run([job("j0", size=50_000), job("j1")], actor())
    assert "needs" in found["j0"].rejected
    assert found["j0"].place is None
    assert math.isfinite(found["j1"].finish)


def test_the_forecast_ends_with_the_jobs_in_question():
    jobs = [job("j0", steps=10), job("j1", steps=1000), job("j2", steps=5, at=5000.0)]
    seen, whole = ClusterView(tuple(jobs), (actor(),), {}), run(jobs, actor())
    found = forecast(seen, "fifo-4", {"j0"})
    assert found["j0"] == whole["j0"]
    assert found["j1"].finish == found["j2"].finish == math.inf
    assert forecast(seen, "fifo-4", set())["j0"].finish == math.inf


def test_beyond_so_much_work_nothing_is_forecast_and_that_is_said(monkeypatch):
    monkeypatch.setattr("orchestrator.scheduler.forecast._MOST_WORK", 300)
    jobs = [job(f"j{n}", steps=10 + n) for n in range(60)] + [job("j60", at=1e9)]
    found = run(jobs, actor())
    ended = [one for one in found.values() if math.isfinite(one.finish)]
    assert 0 < len(ended) < 20
    assert all(one.beyond != math.isfinite(one.finish) for one in found.values())
    assert not any(one.beyond for one in run(jobs[:8], actor()).values())


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_what_is_there_and_what_is_taken_off_keeps_its_steps(policy):
    """Work is conserved: the ends of all jobs are those of one actor that is never idle and steps one at a time."""
    lone = SpeedModel(1e-9, 0.0, 1.0)
    jobs = [job(f"j{n}", steps=5 + 7 * n % 23, at=3.0 * n, tokens=1) for n in range(12)]
    place = actor(speeds={"x": lone}, swap_seconds=0.0)
    found = run(jobs, place, policy=policy)
    last = max(one.finish for one in found.values())
    assert last == pytest.approx(sum(one.steps_left for one in jobs), abs=len(jobs) + 1)


def test_nobody_is_waited_for_for_ever():
    found = run([job("j0")], actor(state=ActorState.BLOCKED, reason="gone"))["j0"]
    assert found.finish == math.inf


def test_the_short_job_goes_first_under_srpt_and_the_long_one_moves_on():
    jobs = [job("j0", steps=1000, actor="a"), job("j1", steps=5, at=1.0)]
    found = run(jobs, actor(), policy="srpt")
    assert found["j1"].finish < found["j0"].finish
    assert found["j0"].places == ["a", "a"]
