"""Databases that another Loray wrote: older ones are brought up to date with all that they hold, newer ones refused."""

import sqlite3

import pytest
import sqlalchemy as sa

from orchestrator.jobs.losses import NONE
from orchestrator.jobs.states import JobState
from orchestrator.store.errors import StoreError
from orchestrator.store.store import Store
from support.repository import ROOT
from support.tables import differences

BEFORE = ROOT / "tests" / "fixtures" / "store" / "before_migrations.sql"
"""The dump of a database that the last Loray without migrations wrote: four jobs, one of them with a retry."""


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/loray.db"


def execute(url, *statements):
    with sqlite3.connect(sa.make_url(url).database) as connection:
        for statement in statements:
            connection.execute(statement)


def write_old(url):
    with sqlite3.connect(sa.make_url(url).database) as connection:
        connection.executescript(BEFORE.read_text(encoding="utf-8"))


def content(url):
    with sqlite3.connect(sa.make_url(url).database) as connection:
        return list(connection.iterdump())


def test_the_steps_end_where_the_definitions_are(url):
    Store(url).close()
    assert differences(url) == []


def test_what_an_older_loray_wrote_is_all_there_and_goes_on(url):
    write_old(url)
    store = Store(url)
    assert differences(url) == []
    jobs = {job.name: job for job in store.jobs()}
    assert [(job.name, job.state, job.attempt, job.retries) for job in jobs.values()] == [
        ("done", JobState.SUCCEEDED, 1, 0),
        ("runs", JobState.RUNNING, 2, 1),
        ("waits", JobState.QUEUED, 0, 0),
        ("held", JobState.PAUSED, 0, 0),
    ]
    assert {job.losses for job in jobs.values()} == {NONE}
    assert jobs["runs"].progress == {"step": 3, "total_steps": 9}
    assert [event["message"] for event in store.events(jobs["runs"].id)][1:3] == [
        "assigned to tiny@cpu:0#0001 (attempt 1)",
        "back in the queue: lost",
    ]
    assert [actor.name for actor in store.actors()] == ["tiny@cpu:0#0002"]
    assert store.profiles() == {"cpu tiny": {"samples": 2}}
    assert [job.name for job in store.request("r1")] == ["done", "runs", "waits", "held"]
    store.assign(jobs["waits"].id, "tiny@cpu:0#0002", "boot2")
    store.close()
    again = Store(url)  # nothing is done twice
    assert again.get(jobs["waits"].id).attempt == 1


def test_a_table_of_the_very_first_form_is_brought_up_to_date(url):
    write_old(url)
    execute(url, "DROP TABLE profiles", "DROP TABLE stays", "UPDATE schema_version SET version = 1")
    store = Store(url)
    assert len(store.jobs()) == 4
    assert (store.stays(), store.profiles()) == ([], {})
    assert differences(url) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE alembic_version SET version_num = '0999'", "has schema 0999, this Loray knows up to 00"),
        ("UPDATE schema_version SET version = 99", "has schema 99, this Loray knows up to 00"),
    ],
)
def test_what_a_newer_loray_wrote_is_refused_in_words_and_left_alone(url, change, words):
    Store(url).close()
    execute(url, change)
    before = content(url)
    with pytest.raises(StoreError, match=words):
        Store(url)
    assert content(url) == before


def test_who_is_cut_off_between_two_steps_finds_the_tables_as_they_were(url, monkeypatch):
    write_old(url)
    with monkeypatch.context() as patch:
        patch.setattr("alembic.migration.MigrationContext.stamp", None)  # the last thing that an opening does
        with pytest.raises(TypeError):
            Store(url)
    with sa.create_engine(url).connect() as connection:
        assert not sa.inspect(connection).has_table("alembic_version")
        assert "losses" not in {column["name"] for column in sa.inspect(connection).get_columns("jobs")}
    assert len(Store(url).jobs()) == 4
