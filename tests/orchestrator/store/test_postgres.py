"""The job table on a real PostgreSQL server that ends connections and is started anew."""

import asyncio

import pytest
import sqlalchemy as sa

from gpu_actor.contract.config import DatasetConfig
from gpu_actor.contract.errors import JobNotFoundError
from orchestrator.jobs.job import JobSpec
from orchestrator.jobs.states import JobState
from orchestrator.store.errors import LiveJobError, StoreError, StoreUnavailableError
from orchestrator.store.records import Wish
from orchestrator.store.store import Store
from support.postgres import postgres
from support.tables import differences

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server():
    with postgres() as running:
        yield running


@pytest.fixture
def store(server):
    server.query("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    store = Store(server.url)
    yield store
    store.close()


def spec(name):
    return JobSpec(name=name, base_model="/m", dataset=DatasetConfig(path="/x.jsonl"), output_dir=f"/out/{name}")


def test_a_job_goes_its_way_as_it_does_in_sqlite(store, server):
    assert differences(server.url) == []
    job = store.add([spec("a"), spec("b")], "r1")[0]
    with pytest.raises(LiveJobError):
        store.add([spec("a")], "r2")
    store.assign(job.id, "x@cpu:0#1", "boot")
    store.set_progress({job.id: {"step": 3}})
    store.wish(job.id, Wish.PAUSE, "asked to pause")
    store.move(job.id, JobState.PAUSED, "paused")
    again = Store(server.url)
    assert (again.get(job.id).state, again.get(job.id).progress) == (JobState.PAUSED, {"step": 3})
    assert [event["message"] for event in again.events(job.id)] == [
        "accepted",
        "assigned to x@cpu:0#1 (attempt 1)",
        "asked to pause",
        "paused",
    ]
    assert [stay.until is None for stay in again.stays()] == [False]
    again.close()
    with pytest.raises(JobNotFoundError):
        store.get("nobody")


def test_the_table_itself_refuses_a_second_live_name(store, server):
    store.add([spec("a")], "r1")
    columns = "name, state, spec, attempt, retries, progress, output_dir, submitted_at, queued_at, request_id, owner"
    copy = f"INSERT INTO jobs (id, {columns}) SELECT 'x', {columns} FROM jobs"
    with pytest.raises(sa.exc.IntegrityError):
        server.query(copy)


def test_what_a_newer_loray_wrote_is_refused(store, server):
    server.query("UPDATE alembic_version SET version_num = '0999'")
    with pytest.raises(StoreError, match="has schema 0999"):
        Store(server.url)


def test_calls_go_on_after_their_connections_were_ended(store, server):
    job = store.add([spec("a")], "r1")[0]

    async def calls():
        for number in range(5):
            await store.turn(lambda number=number: store.note(job.id, f"note {number}"))
            assert server.end_connections() > 0
            assert len(store.jobs()) == 1
            assert server.end_connections() > 0

    asyncio.run(calls())
    assert [event["message"] for event in store.events(job.id)] == ["accepted", *(f"note {n}" for n in range(5))]


def test_a_turn_whose_connection_is_ended_half_way_is_done_anew_and_whole(store, server):
    job = store.add([spec("a")], "r1")[0]
    tries = []

    def work():
        tries.append(store.jobs([JobState.QUEUED])[0].attempt)
        store.assign(job.id, "x@cpu:0#1", "boot")
        if len(tries) == 1:
            server.end_connections()
        store.note(job.id, "after it")

    asyncio.run(store.turn(work))
    assert tries == [0, 0]
    assert (store.get(job.id).attempt, len(store.stays())) == (1, 1)
    assert [event["message"] for event in store.events(job.id)][1:] == ["assigned to x@cpu:0#1 (attempt 1)", "after it"]


def test_a_write_waits_for_a_server_that_is_started_anew(store, server):
    job = store.add([spec("a")], "r1")[0]

    async def calls():
        server.stop()
        try:
            write = asyncio.create_task(store.turn(lambda: store.note(job.id, "late")))
            for _ in range(20):  # the loop is free; a read says what is wrong
                await asyncio.sleep(0.02)
                with pytest.raises(StoreUnavailableError, match="does not answer"):
                    store.counts()
            assert not write.done()
        finally:
            await asyncio.to_thread(server.start)
        await write

    asyncio.run(calls())
    assert [event["message"] for event in store.events(job.id)] == ["accepted", "late"]


def test_a_write_waits_beside_the_loop_while_somebody_holds_the_table(store, server):
    job = store.add([spec("a")], "r1")[0]

    async def calls(other):
        other.exec_driver_sql("LOCK TABLE jobs IN SHARE ROW EXCLUSIVE MODE")
        write = asyncio.create_task(store.turn(lambda: store.note(job.id, "late")))
        for _ in range(20):
            await asyncio.sleep(0.02)
            assert store.counts()[JobState.QUEUED] == 1
        assert not write.done()
        other.rollback()
        await write

    with sa.create_engine(server.url).connect() as other:
        asyncio.run(calls(other))
    assert [event["message"] for event in store.events(job.id)] == ["accepted", "late"]
