"""How much of the cluster one owner's jobs may take: what is too much waits, or is not accepted."""

import asyncio

from orchestrator.cluster.cluster_config import QuotaConfig
from orchestrator.control.admission import Admission
from orchestrator.jobs.states import JobState
from support.house import House

QUOTAS = {"default": QuotaConfig(running=1, queued=2), "bob": QuotaConfig()}


def test_jobs_beyond_a_quota_wait_and_say_why(tmp_path):
    house = House(tmp_path, quotas=QUOTAS)
    house.describe("/models/tiny")
    late, first = house.submit("late", owner="anna"), house.submit("first", owner="anna", priority=1)
    others = [house.submit(name, owner=owner) for name, owner in (("o", "operator"), ("b1", "bob"), ("b2", "bob"))]
    snapshot = house.reconciler.snapshot()
    assert {job.id for job in snapshot.view.jobs} == {first, *others}
    assert snapshot.held == {late: "the end of another job of anna's, who may have 1 running"}
    house.host("x")
    house.store.assign(first, "x", "boot")
    assert late in house.reconciler.snapshot().held
    house.store.move(first, JobState.SUCCEEDED, "done")
    assert house.reconciler.snapshot().held == {}


def test_a_submission_beyond_a_quota_is_refused(tmp_path):
    house = House(tmp_path, quotas=QUOTAS)
    admission = Admission(house.store, house.fleet, house.bases, house.snapshots, house.config)
    waits = house.store.get(house.submit("waits", owner="anna")).spec

    def told(owner, count):
        jobs = [{**waits.model_dump(mode="json"), "name": f"n{i}", "output_dir": f"/o/{i}"} for i in range(count)]
        _, problems = asyncio.run(admission.check(jobs, owner))
        return [problem.message for problem in problems if problem.source == "request"]

    assert told("anna", 1) == []
    assert told("anna", 2) == ["anna has 1 job waiting, and 2 more would exceed the quota of 2; submit fewer"]
    assert told("bob", 3) == told("operator", 3) == []
