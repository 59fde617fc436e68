"""What the orchestrator learns of its devices: fits from reports, kept in the store, and token budgets from them."""

from dataclasses import replace

import pytest

from gpu_actor.footprint import BaseDescription, LinearShape
from gpu_actor.report import ActorReport, StepSample
from orchestrator.cluster_config import ActorConfig
from orchestrator.look import with_profiles
from orchestrator.profiles import Profile, Profiles, idle_memory, token_budget
from orchestrator.scheduler.estimate import MemoryFit, SpeedFit
from orchestrator.scheduler.view import ActorState, ActorView, MemoryModel, SpeedModel
from orchestrator.slots import Slot
from orchestrator.store import Store

LINEARS = tuple(LinearShape(f"model.layers.{i}.mlp.up_proj", 64, 100) for i in range(2))
BASE = BaseDescription("tiny", "llama", LINEARS, 64, 2, 128, 100_000)
A, B, C = 0.040, 0.0002, 0.003
IDLE, PER_TOKEN, ADAPTER = 500e6, 5e3, 1e6


def report(boot="boot", tokens=(100, 400, 200, 800)):
    steps = tuple(
        StepSample(
            n, n * 50, jobs, A + B * n + C * jobs, int(IDLE + PER_TOKEN * max(tokens[: i + 1]) + ADAPTER), int(ADAPTER)
        )
        for i, n in enumerate(tokens)
        for jobs in (1, 2, 3)
    )
    return ActorReport("a", boot, "ready", memory_idle=int(IDLE), token_budget=1024, steps=steps)


@pytest.fixture
def store(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/loray.db")
    yield store
    store.close()


def slot(**settings):
    return Slot("cpu:0", "n", ActorConfig(**settings), 2**30, 1)


def taught(store, rounds=10, **settings):
    profiles = Profiles(store)
    for _ in range(rounds):
        profiles.learn(slot(**settings), BASE, report())
    return profiles


def test_measured_steps_become_a_speed_and_a_memory(store):
    profile = taught(store).of(slot(), "tiny")
    speed, memory = profile.speed.model, profile.memory.model
    assert (speed.step_seconds, speed.token_seconds, speed.adapter_seconds) == pytest.approx((A, B, C), rel=0.1)
    assert memory.fixed_bytes + 800 * memory.bytes_per_token == pytest.approx(IDLE + 800 * PER_TOKEN, rel=0.02)


def test_what_was_learned_is_there_after_a_restart_and_for_another_actor_of_the_kind(store):
    profiles = taught(store)
    profiles.loaded(slot(), "tiny", 7.5)
    profiles.save()
    again = Profiles(store)
    other = Slot("cpu:1", "n", ActorConfig(), 2**30, 1)
    assert again.of(other, "tiny").speed.model == profiles.of(slot(), "tiny").speed.model
    assert again.of(other, "tiny").load_seconds == 7.5
    assert again.of_place(other).keys() == {"tiny"}
    assert again.of(Slot("cpu:1", "n", ActorConfig(), 2**30, 2), "tiny") is None  # other threads, other speed
    assert again.of(Slot("cpu:1", "n", ActorConfig(dtype="bfloat16"), 2**30, 1), "tiny") is None
    assert again.of(Slot("cpu:1", "n", ActorConfig(quantization="nf4"), 2**30, 1), "tiny") is None


def test_swaps_and_loads_are_of_the_base_model_and_outlive_a_restart(store):
    profiles = taught(store)
    assert profiles.of(slot(), "tiny").swap_seconds is None
    profiles.swapped(slot(), "tiny", leave=4.0)
    assert profiles.of(slot(), "tiny").swap_seconds == 4.0 + 1.0  # its other half is guessed
    profiles.swapped(slot(), "tiny", start=2.0)
    profiles.swapped(slot(), "tiny", start=3.0)
    profiles.swapped(slot(), "unheard", start=99.0)
    profiles.loaded(slot(), "tiny", 7.5)
    profiles.save()
    again = Profiles(store)
    assert again.of(slot(), "tiny").swap_seconds == pytest.approx(4.0 + 2.2)
    other = replace(BASE, ref="other", parameters=10**9)
    empty = ActorView("cpu:0", "cpu:0", ActorState.EMPTY, slot().shape)
    place = with_profiles(empty, slot(), again, {"tiny": BASE, "other": other})
    assert place.seconds_to_load("tiny") == 7.5
    assert place.seconds_to_load("other") == pytest.approx(8.0 + 4e9 / 5e8)
    assert place.swap_seconds == pytest.approx(6.2)
    assert with_profiles(empty, slot(), Profiles(None), {}).swap_seconds == 2.0


def test_a_profile_of_old_is_read(store):
    profile = taught(store).of(slot(), "tiny").to_dict()
    del profile["leave_seconds"], profile["start_seconds"]
    assert Profile.from_dict(profile).swap_seconds is None


def test_accelerators_of_two_names_have_two_profiles(store):
    profiles = Profiles(store)
    h100, t4 = (Slot("cuda:0", "n", ActorConfig(num_gpus=1), device_name=name) for name in ("H100 80GB", "T4"))
    profiles.learn(h100, BASE, report())
    assert profiles.of_place(h100).keys() == {"tiny"}
    assert profiles.of_place(t4) == profiles.of_place(Slot("cuda:0", "n", ActorConfig(num_gpus=1))) == {}


def test_the_idle_memory_of_an_accelerator_is_all_that_is_allocated():
    """What no allocator counts is in the limit, so it is neither taken from the idle memory nor added to it."""
    on_cpu = idle_memory(slot(), BASE, int(IDLE))
    on_cuda = idle_memory(Slot("cuda:0", "n", ActorConfig(num_gpus=1)), BASE, int(IDLE))
    assert on_cuda.fixed_bytes == pytest.approx(on_cpu.fixed_bytes, rel=1e-6)


def test_the_token_budget_is_the_saturation_point(store):
    profile = taught(store).of(slot(), "tiny")
    assert token_budget(profile, slot(), None, 400) == pytest.approx(9 * A / B, rel=0.15)
    assert token_budget(profile, slot(), 800 * profile.memory.model.bytes_per_token, 400) == 800
    assert token_budget(profile, slot(token_budget=64), None, 64) == 64  # the cluster file's word


def test_a_budget_waits_for_enough_and_different_steps(store):
    few = taught(store, rounds=1).of(slot(), "tiny")
    assert token_budget(few, slot(), None, 1024) == 1024
    profiles = Profiles(None)
    for _ in range(20):
        profiles.learn(slot(), BASE, report(tokens=(100, 110)))
    assert token_budget(profiles.of(slot(), "tiny"), slot(), None, 1024) == 1024


def test_a_fit_without_a_share_for_tokens_sets_no_budget():
    """All of the time in the adapters: a and b are near zero, and their ratio says nothing."""
    profile = Profile(
        SpeedFit(SpeedModel(1e-9, 1e-9, 0.5)), MemoryFit(MemoryModel(IDLE, PER_TOKEN)), None, 100, 100, 800
    )
    assert token_budget(profile, slot(), None, 1024) == 1024


def test_the_idle_memory_of_a_quantised_base_replaces_its_own_weights_in_the_guess():
    """What the guess has beyond weights and reserve, the logits of a chunk, does not depend on how weights are kept."""
    plain, small = (idle_memory(slot(quantization=q), BASE, int(IDLE)) for q in (None, "nf4"))
    assert small.fixed_bytes == pytest.approx(plain.fixed_bytes, rel=1e-6)
    assert small.fixed_bytes > IDLE
