"""What the orchestrator plans and does for actors whose reports are written by hand: real store, no Ray."""

import pytest

from gpu_actor.report import TenantReport, TenantState
from orchestrator.scheduler.forecast import forecast
from support.house import TINY, House

X = "tiny@cpu:0#0000"


def test_an_idle_actor_whose_base_model_nobody_measured_holds_up_no_other_base(tmp_path):
    """Its only job failed on its data, so there is no profile; it has no job, so nobody describes its base model."""
    house = House(tmp_path)
    house.host(X)
    bad = house.submit("bad")
    house.store.assign(bad, X, "boot")
    house.report(X, TenantReport(bad, 1, TenantState.FAILED, reason="line 3"))
    house.know("/models/other")
    other = house.submit("other", base_model="/models/other")
    plan = house.reconciler._plan()
    assert plan.rehosts == {"cpu:0": "/models/other"}
    assert set(plan.waiting) == {other}


def test_a_cluster_without_a_job_has_a_plan(tmp_path):
    house = House(tmp_path, actors=[{"base_model": TINY}])
    house.host(X, known=False)
    house.report(X)
    assert house.reconciler._plan().rehosts == {}


@pytest.mark.parametrize(("wish", "returns"), [("yield", True), ("pause", False), ("cancel", False), ("finish", False)])
def test_a_job_that_was_told_to_go_is_seen_as_leaving(tmp_path, wish, returns):
    house = House(tmp_path)
    house.host(X)
    job = house.submit("a")
    house.store.assign(job, X, "boot")
    house.report(X, TenantReport(job, 1, TenantState.TRAINING, step=3, total_steps=9))
    before = house.reconciler.look()
    assert (before.view.jobs[0].leaving, before.view.jobs[0].returns) == (False, True)
    house.store.wish(job, wish, "asked")
    look = house.reconciler.look()
    assert (look.view.jobs[0].actor, look.view.jobs[0].leaving, look.view.jobs[0].returns) == ("cpu:0", True, returns)
    assert look.key != before.key


def test_the_forecast_takes_those_who_leave_for_gone(tmp_path):
    house = House(tmp_path)
    house.host(X)
    for name, wish in (("back", "yield"), ("gone", "cancel")):
        job = house.submit(name, max_steps=50)
        house.store.assign(job, X, "boot")
        house.store.wish(job, wish, "asked")
    house.report(X)
    view = house.reconciler.look().view
    found = {one.job.id: one for one in forecast(view).values()}
    assert [found[job.id].place for job in view.jobs if job.returns] == ["cpu:0"]
    assert len(found) == 1
