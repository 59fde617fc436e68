"""Predicted bytes: what counts, and that more is never less."""

from hypothesis import given
from hypothesis import strategies as st

from gpu_actor.footprint import BaseDescription, LinearShape, activation_bytes, base_bytes
from orchestrator.scheduler import estimate
from orchestrator.scheduler.view import ActorShape

LINEARS = tuple(LinearShape(f"model.layers.{i}.mlp.up_proj", 64, 100) for i in range(2))
BASE = BaseDescription("tiny", "llama", LINEARS, 64, 2, 128, 100_000)


def test_an_actor_needs_its_base_a_full_batch_and_a_reserve():
    shape = ActorShape("cpu", token_budget=256)
    parts = base_bytes(BASE) + activation_bytes(BASE, 256) + estimate.RESERVE_BYTES["cpu"]
    assert estimate.fixed_bytes(BASE, shape) == parts


def test_half_precision_halves_the_base():
    whole, half = (estimate.fixed_bytes(BASE, ActorShape("cpu", 1, size)) for size in (4, 2))
    assert whole - half > base_bytes(BASE) / 2 - 1


def test_a_device_with_a_number_has_the_reserve_of_its_kind():
    assert estimate.fixed_bytes(BASE, ActorShape("cuda:1", 8)) == estimate.fixed_bytes(BASE, ActorShape("cuda", 8))


def test_checkpointing_needs_less():
    plain, saving = (ActorShape("cpu", 4096, checkpointing=flag) for flag in (False, True))
    assert estimate.fixed_bytes(BASE, saving) < estimate.fixed_bytes(BASE, plain)
    assert estimate.excess_bytes(BASE, 9000, saving) < estimate.excess_bytes(BASE, 9000, plain)


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(0, 10_000))
def test_excess_starts_above_the_budget_and_grows(budget, tokens, more):
    shape = ActorShape("cpu", budget)
    excess = estimate.excess_bytes(BASE, tokens, shape)
    assert (excess > 0) == (tokens > budget)
    assert estimate.excess_bytes(BASE, tokens + more, shape) >= excess
    assert estimate.fixed_bytes(BASE, shape) + excess == estimate.fixed_bytes(
        BASE, ActorShape("cpu", max(budget, tokens))
    )


def test_sizes_in_words():
    assert estimate.in_words(3 * 2**30 + 2**27) == "3.1 GiB"
    assert estimate.in_words(5 * 2**20) == "5.0 MiB"
