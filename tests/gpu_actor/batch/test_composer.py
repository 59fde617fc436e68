"""The composer: a pure decision, so its rules are properties."""

from hypothesis import given
from hypothesis import strategies as st

from gpu_actor.batch.composer import Candidate, compose

candidates = st.lists(
    st.tuples(st.lists(st.integers(1, 500), min_size=1, max_size=5), st.integers(0, 9)), max_size=8
).map(lambda found: [Candidate(f"j{i}", tuple(tokens), left) for i, (tokens, left) in enumerate(found)])


def tokens_of(candidates, chosen):
    return sum(sum(c.micro_batch_tokens[: chosen.get(c.job_id, 0)]) for c in candidates)


@given(candidates, st.integers(1, 1500))
def test_a_batch_keeps_the_budget_unless_one_micro_batch_alone_is_larger(found, budget):
    chosen = compose(found, budget)
    total = tokens_of(found, chosen)
    assert total <= budget or (len(chosen) == 1 and sum(chosen.values()) == 1)
    assert bool(chosen) == bool(found)
    assert all(1 <= count <= len(c.micro_batch_tokens) for c in found if (count := chosen.get(c.job_id)) is not None)


@given(candidates, st.integers(1, 1500))
def test_nobody_who_still_fits_is_left_out(found, budget):
    chosen = compose(found, budget)
    room = budget - tokens_of(found, chosen)
    assert all(c.job_id in chosen or c.micro_batch_tokens[0] > room for c in found)


@given(candidates, st.integers(1, 1500))
def test_nobody_starves(found, budget):
    """Leave-outs move up: everyone is chosen within a bounded number of batches."""
    waiting = {c.job_id for c in found}
    for _ in range(len(found) + 12):
        chosen = compose(found, budget)
        waiting -= set(chosen)
        found = [Candidate(c.job_id, c.micro_batch_tokens, 0 if c.job_id in chosen else c.left_out + 1) for c in found]
    assert not waiting


def test_everyone_gets_one_before_anyone_gets_two_and_the_order_is_the_schedulers():
    found = [Candidate("a", (10, 10, 10)), Candidate("b", (20,)), Candidate("c", (30,))]
    assert list(compose(found, 75).items()) == [("a", 2), ("b", 1), ("c", 1)]
    assert compose(found, 45) == {"a": 2, "b": 1}
    assert compose(found, 5) == {"a": 1}
    assert compose([found[0], Candidate("c", (30,), left_out=3)], 35) == {"c": 1}
