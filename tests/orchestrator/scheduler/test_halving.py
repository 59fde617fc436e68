"""Successive halving: who stops, when, and that the order of arrival does not matter."""

import random

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.scheduler.halving import Member, expected_steps, rungs, stops


def member(name, losses, total=100, alive=True):
    return Member(name, name, total, alive, losses)


def test_rungs_double_until_the_end():
    assert rungs(10, 80) == [10, 20, 40]
    assert rungs(10, 10) == []


def test_the_steps_that_a_job_makes_on_average_are_those_of_its_rungs():
    assert expected_steps(0, 80, 10, 0.5) == 10 + 10 / 2 + 20 / 4 + 40 / 8
    assert expected_steps(15, 80, 10, 0.5) == 5 + 20 / 2 + 40 / 4
    assert expected_steps(79, 80, 10, 0.5) == 1


def test_the_worse_half_stops_once_it_is_certain():
    grid = [member("a", {10: 1.0}), member("b", {10: 3.0}), member("c", {}), member("d", {})]
    assert stops(grid, 10, 0.5) == {}  # c and d may be worse
    grid[2] = member("c", {10: 2.0})
    assert list(stops(grid, 10, 0.5)) == ["b"]
    words = stops(grid, 10, 0.5)["b"]
    assert "number 3 of 4" in words
    assert "the best is a with 1" in words


def test_the_second_rung_waits_for_the_first():
    grid = [member("a", {10: 1.0, 20: 0.9}), member("b", {10: 2.0, 20: 0.8}), member("c", {10: 3.0}), member("d", {})]
    assert list(stops(grid, 10, 0.5)) == ["c"]
    grid[3] = member("d", {10: 4.0})
    assert set(stops(grid, 10, 0.5)) == {"a", "c", "d"}


def test_those_that_ended_before_a_rung_do_not_count():
    grid = [member("a", {10: 1.0}), member("b", {10: 3.0}), member("c", {}, alive=False), member("d", {}, alive=False)]
    assert list(stops(grid, 10, 0.5)) == ["b"]


@given(st.lists(st.floats(0, 10, allow_nan=False), min_size=1, max_size=9, unique=True), st.integers(0, 10**6))
def test_who_passes_is_a_matter_of_losses_alone(losses, seed):
    """Jobs reach the rung one after another in any order; a job that is told to stop is gone for the rest."""
    alive = {f"j{i}": {} for i in range(len(losses))}
    gone = set()
    order = list(alive)
    random.Random(seed).shuffle(order)
    for name in order:
        alive[name] = {10: losses[int(name[1:])]}
        found = stops([member(n, seen, 15, n not in gone) for n, seen in alive.items()], 10, 0.5)
        assert not set(found) & gone
        gone |= set(found)
    best = sorted(alive, key=lambda n: losses[int(n[1:])])[: -(-len(losses) // 2)]
    assert set(alive) - gone == set(best)
