"""Somebody else holds the database, or it goes away: reads go on, writes wait for their turn, and the loop is free."""

import asyncio
import contextlib
import sqlite3
import threading

import pytest
import sqlalchemy as sa

from gpu_actor.contract.config import DatasetConfig
from gpu_actor.contract.errors import IllegalTransitionError
from orchestrator.jobs.job import JobSpec
from orchestrator.jobs.states import JobState
from orchestrator.store import transactions
from orchestrator.store.errors import StoreUnavailableError
from orchestrator.store.store import Store


def spec(name):
    return JobSpec(name=name, base_model="/m", dataset=DatasetConfig(path="/x.jsonl"), output_dir=f"/out/{name}")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "loray.db"


@pytest.fixture
def store(path):
    store = Store(f"sqlite:///{path}")
    yield store
    store.close()


@contextlib.contextmanager
def locked(path):
    """A second real connection holds the database against all who would write."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.close()


async def patiently(condition):
    while not condition():
        await asyncio.sleep(0.01)


def test_while_it_is_locked_reads_go_on_and_writes_wait_in_their_order(store, path):
    job = store.add([spec("a")], "r1")[0]

    async def calls():
        order = []

        async def write(name):
            await store.turn(lambda: store.note(job.id, name))
            order.append(name)

        with locked(path):
            writes = [asyncio.create_task(write(f"note {number}")) for number in range(3)]
            ticks = 0
            while ticks < 50:  # the loop is free, and whatever is read is there
                await asyncio.sleep(0.01)
                assert store.get(job.id).state is JobState.QUEUED
                assert len(store.jobs()) == len(store.jobs([JobState.QUEUED])) == 1
                assert [event["message"] for event in store.events(job.id)] == ["accepted"]
                ticks += 1
            assert order == []
        await asyncio.gather(*writes)
        return order

    assert asyncio.run(calls()) == ["note 0", "note 1", "note 2"]
    assert [event["message"] for event in store.events(job.id)] == ["accepted", "note 0", "note 1", "note 2"]


def test_who_does_not_wait_any_more_leaves_no_transaction_behind(store, path):
    job = store.add([spec("a")], "r1")[0]

    async def calls():
        with locked(path):
            gone = asyncio.create_task(store.turn(lambda: store.note(job.id, "never")))
            await patiently(lambda: any(thread.name.startswith("asyncio") for thread in threading.enumerate()))
            gone.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gone
        await store.turn(lambda: store.note(job.id, "after it"))

    asyncio.run(calls())
    assert [event["message"] for event in store.events(job.id)] == ["accepted", "after it"]


def test_a_turn_is_one_transaction_of_which_a_failing_part_leaves_nothing(store, path):
    job = store.add([spec("a")], "r1")[0]
    done = []

    def work():
        store.note(job.id, "first")
        store.afterwards(lambda: done.append(outside()))
        assert outside() == ["accepted"]
        store.move(job.id, JobState.SUCCEEDED, "never")

    def outside():
        with sqlite3.connect(path) as connection:
            return [row[0] for row in connection.execute("SELECT message FROM events ORDER BY seq")]

    with pytest.raises(IllegalTransitionError):
        asyncio.run(store.turn(work))
    assert outside() == ["accepted", "first"]
    assert done == [["accepted", "first"]]
    assert store.jobs([JobState.QUEUED])[0].state is JobState.QUEUED


def test_what_is_lost_before_the_commit_is_done_anew_and_nothing_of_it_is_remembered(store, monkeypatch):
    job = store.add([spec("a")], "r1")[0]
    tries = []

    def work():
        tries.append(store.jobs([JobState.QUEUED, JobState.PAUSED])[0].state)
        store.move(job.id, JobState.PAUSED, "paused")
        assert store.jobs([JobState.PAUSED])
        store.afterwards(lambda: tries.append("over"))
        if len(tries) == 1:
            raise_lost()

    def raise_lost():
        with store._transactions.write() as connection:
            connection.close()
            raise sa.exc.OperationalError("x", {}, Exception("server closed the connection"))

    asyncio.run(store.turn(work))
    assert tries == [JobState.QUEUED, JobState.QUEUED, "over"]
    assert store.get(job.id).state is JobState.PAUSED


def test_who_waits_for_too_long_is_told_so_in_words(store, path, monkeypatch):
    monkeypatch.setattr(transactions, "PATIENCE_SECONDS", 0.0)
    with store._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=1")
    with locked(path), pytest.raises(StoreUnavailableError, match=r"does not answer \(database is locked\).*ask again"):
        asyncio.run(store.turn(lambda: store.add([spec("a")], "r1")))
    assert store.jobs() == []
