"""How much of the cluster one owner's jobs may take: what is too much waits, or is not accepted."""

import asyncio
import time

from orchestrator.cluster.cluster_config import QuotaConfig
from orchestrator.control.admission import Admission
from orchestrator.jobs.states import JobState
from orchestrator.store import tables
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


def test_jobs_wait_when_their_owner_has_had_its_hours_of_devices(tmp_path):
    house = House(tmp_path, quotas={"anna": QuotaConfig(device_hours=10)})
    house.describe("/models/tiny")
    house.host("x")
    ran, beside, waits, _ = [
        house.submit(name, owner=owner)
        for name, owner in (("ran", "anna"), ("beside", "bob"), ("waits", "anna"), ("other", "bob"))
    ]
    for job in (ran, beside):
        house.store.assign(job, "x", "boot")

    def held_after(hours):  # two jobs share the device
        with house.store._transactions.write() as connection:
            connection.execute(tables.stays.update().values(since=time.time() - hours * 3600))
        house.snapshots._limits._counted_at = float("-inf")
        asyncio.run(house.snapshots.prepare())
        return house.reconciler.snapshot().held

    assert held_after(19.9) == {}
    assert held_after(20.1) == {waits: "device hours: anna's jobs took 10.1 in the latest 30 days, the quota is 10"}
    assert held_after(40 * 24)[waits].startswith("device hours: anna's jobs took 360.0 in")  # half of 30 days


def test_where_owners_have_shares_many_jobs_of_one_hold_up_nobody_elses(tmp_path):
    def first_of(**fields):
        house = House(tmp_path / str(len(fields)), "srpt", **fields)
        house.host("x")
        house.report("x")
        grid = [house.submit(f"g{i}", owner="anna") for i in range(8)]
        single, twice = house.submit("single", owner="bob"), house.submit("twice", owner="eve")
        names = {grid[0]: "anna's", single: "bob's", twice: "eve's"}
        priorities = {names[job.id]: job.priority for job in house.reconciler.snapshot().view.jobs if job.id in names}
        (started,) = house.plan().placements
        return names[started], priorities

    assert first_of() == ("anna's", {"anna's": 0, "bob's": 0, "eve's": 0})
    shares = {"eve": QuotaConfig(share=2.0)}  # 10 jobs: 2.5 for anna's eight and for bob's one, 5 for eve's one
    assert first_of(quotas=shares) == ("eve's", {"anna's": -2, "bob's": 1, "eve's": 2})
