"""An orchestrator whose job table is on a real PostgreSQL server, which ends connections and is started anew."""

import pytest
import ray

from support.cluster import steps_of, wait_until
from support.postgres import postgres

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600), pytest.mark.xdist_group("ray_cluster")]


@pytest.fixture
def server():
    with postgres() as running:
        yield running


def test_jobs_go_on_while_connections_end_and_the_server_is_started_anew(server, orchestrate, make):
    orchestrator = orchestrate(database=server.url)
    # however fast the machine is, the second is not over before somebody ends it
    one, two = orchestrator.submit(make("one", steps=400), make("two", steps=1_000_000, r=8))
    for job_id in (one, two):
        orchestrator.wait(job_id, "RUNNING", until=lambda job: job["step"] > 2)
    for _ in range(5):
        assert server.end_connections() > 0
        assert orchestrator.call("get_job", "two")["state"] == "RUNNING"
    server.stop()
    wish = orchestrator.handle.pause.remote("two")
    assert ray.wait([wish], timeout=2)[0] == []  # it waits for the server
    server.start()
    assert ray.get(wish, timeout=60)["name"] == "two"
    (late,) = orchestrator.submit(make("late", steps=5))
    paused = orchestrator.wait("two", "PAUSED")
    server.end_connections()
    orchestrator.call("resume", "two")
    orchestrator.wait("two", "RUNNING", until=lambda job: job["step"] > paused["step"])
    done = [orchestrator.wait(job_id, "SUCCEEDED") for job_id in (one, late)]
    orchestrator.call("cancel", "two")
    done.append(orchestrator.wait("two", "CANCELLED"))
    assert [job["retries"] for job in done] == [0, 0, 0]
    assert steps_of(done[0]) == list(range(1, 401))
    assert server.query("SELECT count(*) FROM jobs WHERE state = 'SUCCEEDED'") == 2
    wait_until(lambda: orchestrator.call("cluster")["controller"]["trouble"] is None)
