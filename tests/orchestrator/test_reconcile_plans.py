"""What the orchestrator plans and does for actors whose reports are written by hand: real store, no Ray."""

from gpu_actor.report import TenantReport, TenantState
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
