"""What was sent stays as long as a job may read it, and a week longer."""

import os
import shutil

import pytest

from gpu_actor.contract.errors import IllegalTransitionError
from orchestrator.endpoint.references import uploads
from orchestrator.jobs.states import JobState
from orchestrator.storage.unused_uploads import KEEP_SECONDS, UnusedUploads, unused_uploads
from support.cluster import wait_until
from support.house import House

DAY = 24 * 3600.0


@pytest.fixture
def house(tmp_path):
    house = House(tmp_path)
    house.host("actor")
    return house


def sent(house, name, at):
    home = uploads(house.path) / name
    home.mkdir(parents=True)
    (home / "data.jsonl").write_text("{}\n")
    os.utime(home, (at, at))
    return home


def test_nothing_goes_that_a_job_needs_or_needed_of_late(house):
    live, over, lone = (sent(house, name * 64, 0) for name in "abc")
    house.submit("live", data=live / "data.jsonl")
    job_id = house.submit("over", data=over / "data.jsonl")
    ended = house.store.move(job_id, JobState.CANCELLED, "cancelled").finished_at

    def unused(now):
        return set(unused_uploads(uploads(house.path), house.store.jobs(), now))

    assert unused(ended) == {lone}
    assert unused(ended + KEEP_SECONDS - DAY) == {lone}
    assert unused(ended + KEEP_SECONDS + DAY) == {over, lone}
    os.utime(lone, (ended, ended))  # somebody asked for it, to submit another job
    assert unused(ended + DAY) == set()

    old = sent(house, "d" * 64, 0)
    UnusedUploads(house.store, uploads(house.path)).look()
    wait_until(lambda: not old.exists())
    assert live.is_dir()


def test_who_retries_a_job_whose_data_are_removed_hears_why(house):
    home = sent(house, "a" * 64, 0)
    job = house.store.get(house.submit("late", data=home / "data.jsonl"))
    uploaded = UnusedUploads(house.store, uploads(house.path))
    uploaded.check_there(job)
    shutil.rmtree(home)
    with pytest.raises(IllegalTransitionError, match=r"late .*: data.jsonl, .* 7 days after .* Submit the job"):
        uploaded.check_there(job)
