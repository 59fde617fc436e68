"""What is held against a job whose actors died: who is tried alone, who is the culprit, when a job is tried again."""

import json

import pytest

from orchestrator.jobs.losses import (
    MOST_WAIT_SECONDS,
    NONE,
    Losses,
    LostActor,
    after,
    explained,
    is_culprit,
    outlived,
    tried_alone,
)


def lost(name="x#1", *, by_itself=True, alone=False, step=5, seconds=10.0, time=1000.0):
    return LostActor(name, "killed", by_itself, alone, step, seconds, time)


def held(deaths=0, others=0):
    losses = NONE
    for number in range(deaths):
        losses = after(losses, lost(f"x#{number}"))
    for _ in range(others):
        losses = after(losses, lost(by_itself=False))
    return losses


@pytest.mark.parametrize(
    ("deaths", "max_retries", "alone"),
    [(0, 0, False), (0, 2, False), (1, 2, False), (2, 2, True), (2, 9, True), (1, 1, True), (1, 0, True)],
)
def test_two_deaths_in_a_row_or_the_last_try_are_tried_alone(deaths, max_retries, alone):
    assert tried_alone(held(deaths), max_retries) is alone


def test_what_is_gone_with_its_node_counts_for_nothing_but_the_wait():
    losses = held(others=40)
    assert not tried_alone(losses, 0)
    assert not is_culprit(losses, lost(by_itself=False, alone=True), 0)
    assert losses.not_before == 1000.0 + MOST_WAIT_SECONDS


@pytest.mark.parametrize(
    ("deaths", "fields", "max_retries", "culprit"),
    [
        (2, {"alone": True}, 2, True),
        (2, {"alone": False}, 2, False),  # it began alone as a suspect, but was not
        (2, {"alone": True, "by_itself": False}, 2, False),
        (1, {"alone": True}, 2, False),  # nobody's yet
        (0, {"alone": True}, 2, False),
        (0, {"alone": True}, 0, True),  # it has no further try
        (0, {"alone": False}, 0, False),
    ],
)
def test_a_suspect_that_kills_alone_is_the_culprit(deaths, fields, max_retries, culprit):
    assert is_culprit(held(deaths), lost(**fields), max_retries) is culprit


def test_a_culprit_takes_what_it_explains_off_the_others():
    culprit = after(after(after(NONE, lost("x#1")), lost("x#2")), lost("x#3", alone=True))
    both = after(after(NONE, lost("x#1")), lost("x#2"))
    one = after(after(NONE, lost("x#1")), lost("y#1"))
    assert explained(both, culprit) == NONE
    assert explained(one, culprit).deaths == ("y#1",)
    assert not tried_alone(explained(one, culprit), 2)
    other = after(NONE, lost("y#1"))
    assert explained(other, culprit) is other


def test_each_try_waits_twice_as_long_up_to_a_limit():
    waits = [held(number).not_before - 1000.0 for number in range(1, 12)]
    assert waits[:4] == [2.0, 4.0, 8.0, 16.0]
    assert max(waits) == MOST_WAIT_SECONDS
    told = held(3).waits(1001.0)
    assert "3 actors in a row" in told
    assert "killed" in told
    assert held(3).waits(1008.0) is None
    assert NONE.waits(0.0) is None


@pytest.mark.parametrize(("step", "seconds", "free"), [(6, 15.1, True), (5, 15.1, False), (6, 14.9, False)])
def test_who_comes_further_and_stays_longer_is_cleared(step, seconds, free):
    assert outlived(held(2), step, seconds) is free


def test_the_store_gives_back_what_it_was_given():
    losses = held(2, 1)
    assert Losses.of_row(json.loads(json.dumps(losses.row()))) == losses
    assert NONE.row() is None
    assert Losses.of_row(None) == NONE
