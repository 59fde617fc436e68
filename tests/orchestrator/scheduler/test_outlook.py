"""When jobs will be over and how sure that is, by closed formulas."""

import asyncio
import math

import pytest

from orchestrator.reporting import finishes
from orchestrator.scheduler.outlook import of_the_queue, outlooks
from orchestrator.scheduler.view import ActorShape, ActorState, ActorView, ClusterView, JobView, MemoryModel, SpeedModel

MEMORY = MemoryModel(1000.0, 1.0, 500)


def actor(doubt=0.05, name="a", base="x"):
    return ActorView(
        name,
        name,
        ActorState.READY,
        ActorShape("cpu", 500),
        base,
        memory_limit=10_000,
        speeds={base: SpeedModel(1.0, 0.01, 0.5)},
        memories={base: MEMORY},
        doubts={base: doubt},
        pinned=base,
    )


def job(name, steps=10, base="x", size=100, now=100.0):
    return JobView(name, base, 0, int(name[1:]), size, 100, steps_left=steps, tokens_per_step=100, submitted_at=now)


def look(jobs, *actors, now=100.0):
    return outlooks(ClusterView(tuple(jobs), actors, {}, now), "fifo")


@pytest.mark.parametrize(("doubt", "factor"), [(0.05, 1.2), (0.25, 1.5), (9.0, 1.8)])
def test_the_span_is_that_of_speeds_two_errors_off(doubt, factor):
    found = look([job("j0")], actor(doubt))["j0"]
    trains = 10 * 2.5
    assert found.start == pytest.approx(102.0)
    assert found.finish == pytest.approx(102.0 + trains)
    assert found.latest == pytest.approx(102.0 + trains * factor)
    assert found.earliest == pytest.approx(102.0 + trains / factor)
    assert not found.guess


def test_what_was_hardly_measured_is_a_guess_and_so_is_the_queue():
    found = look([job("j0"), job("j1", base="y")], actor(), actor(math.inf, "b", "y"))
    assert (found["j0"].guess, found["j1"].guess) == (False, True)
    whole = of_the_queue(found)
    assert whole.guess
    assert whole.finish == max(one.finish for one in found.values())
    assert of_the_queue({}) is None


def test_who_never_runs_has_no_outlook():
    assert look([job("j0", size=50_000), job("j1")], actor()).keys() == {"j1"}


def test_it_is_forecast_when_somebody_asks_and_what_fails_there_fails_nothing_else(monkeypatch):
    looks = []

    def take():
        looks.append(1)
        if len(looks) > 1:
            raise ValueError("no look")
        now = finishes.time.time()
        return ClusterView((job("j0", now=now), job("j1", now=now)), (actor(),), {}, now)

    async def asked():
        found = finishes.Finishes(take, "fifo")
        assert found.of("j0") is None
        await found.refresh()
        await found.refresh()  # the first one is good for a while
        one, queue = found.of("j0"), found.of_queue(["j0", "j1", "new"])
        monkeypatch.setattr(finishes.time, "monotonic", lambda: math.inf)
        await found.refresh()
        return one, queue, found.of("j0")

    one, queue, after = asyncio.run(asked())
    assert 0 < one["start_s"] < one["earliest_s"] < one["finish_s"] < one["latest_s"]
    assert queue["unknown"] == 1
    assert queue["finish_s"] > one["finish_s"]
    assert after is None
    assert len(looks) == 2
