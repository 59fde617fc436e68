"""Predicted bytes: what counts, and that more is never less."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_actor.contract.description import BaseDescription, LinearShape
from gpu_actor.contract.footprint import activation_bytes, base_bytes
from orchestrator.scheduler import estimate
from orchestrator.scheduler.estimate import MemoryFit, SpeedFit
from orchestrator.scheduler.view import ActorShape, MemoryModel, SpeedModel
from support.house import fixed_bytes

LINEARS = tuple(LinearShape(f"model.layers.{i}.mlp.up_proj", 64, 100) for i in range(2))
BASE = BaseDescription("tiny", "llama", LINEARS, 64, 2, 128, 100_000)


def test_an_actor_needs_its_base_a_full_batch_and_a_reserve():
    shape = ActorShape("cpu", token_budget=256)
    parts = base_bytes(BASE) + activation_bytes(BASE, 256) + estimate.RESERVE_BYTES["cpu"]
    assert fixed_bytes(BASE, shape) == parts


def test_half_precision_halves_the_base():
    whole, half = (fixed_bytes(BASE, ActorShape("cpu", 1, size)) for size in (4, 2))
    assert whole - half > base_bytes(BASE) / 2 - 1


def test_a_device_with_a_number_has_the_reserve_of_its_kind():
    assert fixed_bytes(BASE, ActorShape("cuda:1", 8)) == fixed_bytes(BASE, ActorShape("cuda", 8))


def test_checkpointing_needs_less():
    plain, saving = (ActorShape("cpu", 4096, checkpointing=flag) for flag in (False, True))
    assert fixed_bytes(BASE, saving) < fixed_bytes(BASE, plain)


@given(st.integers(600, 10_000), st.integers(600, 10_000))
def test_the_guess_is_the_footprint_at_every_number_of_tokens(budget, tokens):
    guess = estimate.prior_memory(BASE, ActorShape("cpu", budget))
    peak = guess.fixed_bytes + guess.bytes_per_token * tokens
    parts = base_bytes(BASE) + activation_bytes(BASE, tokens) + estimate.RESERVE_BYTES["cpu"]
    assert guess.token_cap == budget
    assert peak == pytest.approx(parts, rel=1e-9)


def test_a_guessed_speed_is_positive_and_slower_with_checkpointing():
    plain, saving = (estimate.prior_speed(BASE, ActorShape("cpu", 64, checkpointing=flag)) for flag in (False, True))
    assert min(plain.step_seconds, plain.token_seconds, plain.adapter_seconds) > 0
    assert saving.token_seconds > plain.token_seconds


@pytest.mark.parametrize("wrong_by", [0.1, 1.0, 8.0])
def test_measured_steps_correct_a_guess_that_is_far_off(wrong_by):
    true = SpeedModel(0.06, 7.5e-5, 0.004)
    fit = SpeedFit(SpeedModel(0.06 * wrong_by, 7.5e-5 / wrong_by, 0.004))
    random = np.random.default_rng(0)
    for _ in range(60):
        adapters = int(random.integers(1, 9))
        tokens = adapters * int(random.integers(50, 2000))
        seconds = true.step_seconds + true.token_seconds * tokens + true.adapter_seconds * adapters
        fit.observe(tokens, adapters, seconds * math.exp(random.normal(0, 0.02)))
    for tokens, adapters in ((200, 1), (4000, 4), (16000, 8)):
        wanted, found = (
            m.step_seconds + m.token_seconds * tokens + m.adapter_seconds * adapters for m in (true, fit.model)
        )
        assert found == pytest.approx(wanted, rel=0.02)


def test_a_fit_follows_a_device_that_becomes_slower():
    fit = SpeedFit(SpeedModel(0.06, 7.5e-5, 0.004))
    for speed in (1.0, 2.0):
        for number in range(400):
            tokens = 100 + 37 * (number % 50)
            fit.observe(tokens, 1 + number % 4, speed * (0.06 + 7.5e-5 * tokens + 0.004 * (1 + number % 4)))
    found = fit.model.step_seconds + fit.model.token_seconds * 1000 + fit.model.adapter_seconds * 2
    assert found == pytest.approx(2 * (0.06 + 0.075 + 0.008), rel=0.05)


def test_measured_peaks_correct_the_memory_in_ten_steps():
    true = MemoryModel(3.1e9, 2.3e6, 1024)
    fit = MemoryFit(MemoryModel(3.1e9 * 1.2, 2.3e6 * 0.7, 1024))
    for number in range(10):
        tokens = 200 + 90 * number
        fit.observe(tokens, 1e8, true.fixed_bytes + true.bytes_per_token * tokens + 1e8)
    for tokens in (100, 1024, 2000):
        wanted, found = (m.fixed_bytes + m.bytes_per_token * tokens for m in (true, fit.model))
        assert found == pytest.approx(wanted, rel=0.01)
    assert fit.model.token_cap == 1024


def test_nothing_is_learnt_from_what_was_not_measured():
    fit = SpeedFit(SpeedModel(1.0, 1.0, 1.0))
    fit.observe(0, 0, 0.0)
    assert fit.model == SpeedModel(1.0, 1.0, 1.0)


def test_a_batch_is_saturated_where_its_fixed_cost_is_a_tenth():
    tokens = estimate.saturation_tokens(SpeedModel(0.06, 7.5e-5, 0.002))
    assert 0.06 / (0.06 + 7.5e-5 * tokens) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_noise_does_not_drive_a_fit_away(seed):
    """Steps on a busy machine, whose fixed cost is almost nothing and whose tokens grow with the adapters."""
    random = np.random.default_rng(seed)
    fit = SpeedFit(SpeedModel(8e-3, 1e-4, 5e-3))
    for number in range(400):
        adapters = 1 if number < 60 else int(random.integers(3, 5))
        tokens = adapters * random.normal(160, 15)
        fit.observe(tokens, adapters, (0.005 + 1e-3 * tokens) * math.exp(random.normal(0, 0.5)))
        speed = fit.model
        shared = speed.step_seconds + speed.token_seconds * 480 + speed.adapter_seconds * 3
        assert 0.1 < shared / 0.485 < 2.0
    assert shared == pytest.approx(0.485 * math.exp(0.5**2 / 2), rel=0.15)  # the mean of such steps
