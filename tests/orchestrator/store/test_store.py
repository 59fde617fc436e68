"""The job table: nothing is lost, nothing is there twice, nothing illegal gets in."""

import sqlite3
import subprocess
import sys
import textwrap

import pytest
import sqlalchemy

from gpu_actor.contract.config import DatasetConfig
from gpu_actor.contract.errors import IllegalTransitionError, JobNotFoundError
from orchestrator.jobs.job import JobSpec
from orchestrator.jobs.owner import OwnerError
from orchestrator.jobs.states import JobState
from orchestrator.store.errors import LiveJobError, StoreError
from orchestrator.store.records import ActorRecord, Wish
from orchestrator.store.store import Store


def spec(name, output_dir=None, **fields):
    return JobSpec(
        name=name,
        base_model="/models/tiny",
        dataset=DatasetConfig(path="/data/x.jsonl", val_size=0.25),
        output_dir=output_dir or f"/out/{name}",
        **fields,
    )


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/deep/loray.db"


@pytest.fixture
def store(url):
    store = Store(url)
    yield store
    store.close()


def finished(store, name="a"):
    job = store.add([spec(name)], f"r-{name}")[0]
    store.assign(job.id, "x", "boot")
    return store.move(job.id, JobState.SUCCEEDED, "done")


def test_an_accepted_job_is_there_after_reopening_and_equal(store, url):
    wanted = spec("a", training={"learning_rate": 1e-5, "num_train_epochs": 1})
    job = store.add([wanted], "r1")[0]
    store.close()
    again = Store(url).get(job.id)
    assert again == job
    assert again.spec == wanted
    assert (again.state, again.attempt, again.started_at) == (JobState.QUEUED, 0, None)


def test_a_commit_survives_the_death_of_the_process(tmp_path, url):
    code = f"""
        import os, signal
        from test_store import Store, spec
        Store({url!r}).add([spec("a"), spec("b")], "r1")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    paths = [str(__import__("pathlib").Path(__file__).parent), *sys.path]
    done = subprocess.run(command, env={"PYTHONPATH": ":".join(filter(None, paths))}, check=False)
    assert done.returncode == -9
    assert [job.name for job in Store(url).jobs()] == ["a", "b"]


def test_sqlite_flushes_every_commit(store, tmp_path):
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_the_same_request_again_gives_the_same_jobs(store):
    first = store.add([spec("a"), spec("b")], "r1")
    store.move(first[0].id, JobState.CANCELLED, "cancelled")
    again = store.add([spec("a"), spec("b")], "r1")
    assert [job.id for job in again] == [job.id for job in first]
    assert again[0].state is JobState.CANCELLED
    assert len(store.jobs()) == 2
    assert [job.id for job in store.request("r1")] == [job.id for job in first]
    assert store.request("r2") is None


@pytest.mark.parametrize(("second", "field"), [(spec("a", "/out/else"), "name"), (spec("b", "/out/a"), "output_dir")])
def test_a_live_name_and_a_live_folder_are_taken(store, second, field):
    store.add([spec("a")], "r1")
    with pytest.raises(LiveJobError) as error:
        store.add([spec("free"), second], "r2")
    assert error.value.field == field
    assert [job.name for job in store.jobs()] == ["a"]
    assert store.request("r2") is None


def test_the_table_itself_refuses_a_second_live_name(store, tmp_path):
    store.add([spec("a")], "r1")
    with sqlite3.connect(tmp_path / "deep/loray.db") as connection, pytest.raises(sqlite3.IntegrityError):
        connection.execute(
            "INSERT INTO jobs (id, name, state, spec, attempt, retries, progress, output_dir, submitted_at, "
            "queued_at, request_id)"
            " VALUES ('x', 'a', 'RUNNING', '{}', 0, 0, '{}', '/else', 0, 0, 'r')"
        )


def test_the_name_of_a_finished_job_is_free_and_means_the_newest(store):
    old = finished(store)
    new = store.add([spec("a", "/out/new")], "r2")[0]
    assert store.find("a").id == new.id
    assert store.find(old.id).id == old.id


def test_a_job_comes_back_to_life_only_beside_no_other_of_its_name(store):
    old = store.add([spec("a")], "r1")[0]
    store.move(old.id, JobState.CANCELLED, "cancelled")
    store.add([spec("a", "/out/new")], "r2")
    with pytest.raises(LiveJobError, match="'a' is the name of a live job"):
        store.move(old.id, JobState.QUEUED, "retried")
    assert store.get(old.id).state is JobState.CANCELLED


def test_unknown_jobs_are_named(store):
    with pytest.raises(JobNotFoundError, match="'nobody'"):
        store.find("nobody")


def test_assigning_raises_the_attempt_and_happens_once(store):
    job = store.add([spec("a")], "r1")[0]
    first = store.assign(job.id, "x", "boot")
    assert (first.attempt, first.state, first.actor, first.boot_id) == (1, JobState.RUNNING, "x", "boot")
    assert store.assign(job.id, "y", "other") is None
    assert store.get(job.id) == first
    back = store.move(job.id, JobState.QUEUED, "lost", retries=1)
    assert (back.attempt, back.actor, back.retries, back.started_at) == (1, None, 1, first.started_at)
    assert store.assign(job.id, "y", "other").attempt == 2


def test_an_illegal_move_changes_nothing(store):
    job = finished(store)
    events = store.events(job.id)
    with pytest.raises(IllegalTransitionError):
        store.move(job.id, JobState.QUEUED, "no")
    assert store.get(job.id) == job
    assert store.events(job.id) == events


def test_leaving_a_state_ends_its_wish_and_waiting_reason(store):
    job = store.add([spec("a")], "r1")[0]
    store.set_waiting({job.id: "memory"})
    store.assign(job.id, "x", "boot")
    assert store.wish(job.id, Wish.PAUSE, "asked to pause").wish is Wish.PAUSE
    paused = store.move(job.id, JobState.PAUSED, "paused")
    assert (paused.wish, paused.waiting_for, paused.finished_at) == (None, None, None)
    assert store.move(job.id, JobState.CANCELLED, "cancelled").finished_at is not None


def test_events_are_in_order_and_can_be_followed(store):
    job = finished(store)
    events = store.events(job.id)
    assert [event["message"] for event in events] == ["accepted", "assigned to x (attempt 1)", "done"]
    assert store.events(job.id, after=events[1]["seq"]) == events[2:]
    assert store.events(finished(store, "b").id)[0]["seq"] > events[-1]["seq"]


def test_recent_events_are_those_of_all_jobs_or_of_one_owner(store):
    mine, annas = finished(store, "mine"), store.add([spec("annas")], "r-annas", "anna")[0]
    store.note(mine.id, "later")
    told = [(event["name"], event["message"]) for event in store.recent_events(3)]
    assert told == [("mine", "done"), ("annas", "accepted"), ("mine", "later")]
    assert [event["job_id"] for event in store.recent_events(9, "anna")] == [annas.id]
    assert store.recent_events(9, "nobody") == []


def test_of_the_jobs_that_are_over_the_newest_are_read(store):
    for name in "abc":
        finished(store, name)
    store.add([spec("annas")], "r-annas", "anna")
    store.add([spec("d")], "r-d")
    finished(store, "e")

    def names(owner, most_over):
        return "".join(job.name[0] for job in store.jobs_of(owner, most_over))

    everybodys = store.jobs_of(None, None)
    assert everybodys == store.jobs()
    assert [names(None, most) for most in (0, 2, 4)] == ["ad", "cade", "abcade"]
    assert [names("anna", most) for most in (0, 9)] == ["a", "a"]
    assert names("operator", 1) == "de"


def test_progress_and_counts(store):
    jobs = store.add([spec("a"), spec("b")], "r1")
    store.set_progress({jobs[0].id: {"step": 3, "loss": 0.5}})
    assert store.get(jobs[0].id).progress == {"step": 3, "loss": 0.5}
    assert store.get(jobs[1].id).progress == {}
    finished(store, "c")
    assert store.counts() == {
        **dict.fromkeys(JobState, 0),
        JobState.QUEUED: 2,
        JobState.SUCCEEDED: 1,
    }


LIVE = [JobState.QUEUED, JobState.RUNNING, JobState.PAUSED]


def test_live_jobs_at_hand_are_those_of_the_table_after_every_change(store, url):
    """Also after changes that are refused half-way, and when an old job comes back among younger ones."""

    def agree():
        fresh = Store(url)
        for states in (*([state] for state in LIVE), LIVE[:2], LIVE):
            assert store.jobs(states) == fresh.jobs(states)
        fresh.close()

    agree()
    jobs = store.add([spec(name) for name in "abcd"], "r1")
    agree()
    store.assign(jobs[0].id, "x", "boot")
    store.set_progress({jobs[0].id: {"step": 1}, jobs[1].id: {"step": 0}})
    agree()
    store.set_waiting({job.id: f"waits {job.name}" for job in jobs[1:]})
    store.wish(jobs[0].id, Wish.YIELD, "asked")
    agree()
    store.move(jobs[1].id, JobState.CANCELLED, "cancelled")
    store.move(jobs[2].id, JobState.PAUSED, "paused")
    agree()
    with pytest.raises(IllegalTransitionError):
        store.move(jobs[3].id, JobState.SUCCEEDED, "no")
    with pytest.raises(LiveJobError):
        store.add([spec("e"), spec("d", "/out/else")], "r2")
    agree()
    store.move(jobs[1].id, JobState.QUEUED, "retried")
    agree()
    assert [job.name for job in store.jobs(LIVE)] == ["a", "b", "c", "d"]


def test_only_rows_that_changed_are_read_again(store):
    jobs = store.add([spec(f"n{i}") for i in range(40)], "r1")
    first = store.jobs(LIVE)
    read = []
    sqlalchemy.event.listen(store._engine, "before_cursor_execute", lambda *event: read.append(event[2:4]))
    assert all(one is other for one, other in zip(first, store.jobs(LIVE), strict=True))
    assert not read
    store.set_waiting({jobs[3].id: "memory"})
    read.clear()
    second = store.jobs(LIVE)
    assert [one.name for one, other in zip(first, second, strict=True) if one is not other] == ["n3"]
    assert [parameters for _, parameters in read] == [(jobs[3].id,)]


def test_ids_sort_by_age_and_are_short(store):
    jobs = [job for i in range(3) for job in store.add([spec(f"n{i}-{k}") for k in range(40)], f"r{i}")]
    ids = [job.id for job in jobs]
    assert ids == sorted(ids)
    assert len(set(ids)) == 120
    assert {len(job_id) for job_id in ids} == {12}


def test_actors_are_remembered(store):
    store.add_actor(ActorRecord("x#1", "cpu:0", "tiny"))
    store.add_actor(ActorRecord("x#2", "cpu:1", "tiny"))
    store.remove_actor("x#1")
    assert store.actors() == [ActorRecord("x#2", "cpu:1", "tiny")]


def test_a_name_is_its_owners_newest_job(store):
    mine = store.add([spec("a")], "r1", "anna")[0]
    assert (mine.owner, store.get(mine.id).owner) == ("anna", "anna")
    store.move(mine.id, JobState.CANCELLED, "cancelled")
    other = store.add([spec("a", "/out/other")], "r2")[0]
    assert other.owner == "operator"
    assert store.find("a") == other
    assert store.find("a", "anna").id == mine.id
    assert store.find(other.id, "anna") == other


def test_tokens_come_once_and_go(store, url):
    store.add_token("anna", "aa")
    store.add_token("anna", "aa")
    with pytest.raises(OwnerError, match="has a token already"):
        store.add_token("anna", "bb")
    assert [(token.owner, token.digest) for token in Store(url).tokens()] == [("anna", "aa")]
    store.remove_token("anna")
    assert store.tokens() == []
    with pytest.raises(OwnerError, match="has no token"):
        store.remove_token("anna")


def test_a_database_that_cannot_be_opened_is_named_without_its_password(tmp_path):
    (tmp_path / "file").write_text("no database" * 200)
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(f"sqlite:///{tmp_path}/file")
    with pytest.raises(StoreError) as error:
        Store("postgresql+psycopg2://me:secret@localhost:1/x")
    assert "secret" not in str(error.value)
