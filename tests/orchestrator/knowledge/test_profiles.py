"""What the orchestrator learns of its devices: fits from reports, kept in the store, and token budgets from them."""

from dataclasses import replace

import numpy as np
import pytest

from gpu_actor.contract.description import BaseDescription, LinearShape
from gpu_actor.contract.report import ActorPhase, ActorReport, StepSample
from orchestrator.cluster.cluster_config import ActorConfig
from orchestrator.cluster.places import Place
from orchestrator.knowledge.place_models import with_models
from orchestrator.knowledge.profiles import Profile, Profiles, idle_memory, leaving_room, profile_key, token_budget
from orchestrator.scheduler.estimate import MemoryFit, SpeedFit
from orchestrator.scheduler.view import ActorState, ActorView, MemoryModel, SpeedModel
from orchestrator.store.store import Store

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
    return ActorReport("a", boot, ActorPhase.READY, memory_idle=int(IDLE), token_budget=1024, steps=steps)


@pytest.fixture
def store(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/loray.db")
    yield store
    store.close()


def a_place(**settings):
    return Place("cpu:0", "n", ActorConfig(**settings), 2**30, 1)


def taught(store, rounds=10, **settings):
    profiles = Profiles(store)
    for _ in range(rounds):
        profiles.learn(a_place(**settings), BASE, report())
    return profiles


def test_measured_steps_become_a_speed_and_a_memory(store):
    profile = taught(store).of(a_place(), "tiny")
    speed, memory = profile.speed.model, profile.memory.model
    assert (speed.step_seconds, speed.token_seconds, speed.adapter_seconds) == pytest.approx((A, B, C), rel=0.1)
    assert memory.fixed_bytes + 800 * memory.bytes_per_token == pytest.approx(IDLE + 800 * PER_TOKEN, rel=0.02)


def test_what_was_learned_is_there_after_a_restart_and_for_another_actor_of_the_kind(store):
    profiles = taught(store)
    profiles.loaded(a_place(), "tiny", 7.5)
    profiles.save()
    again = Profiles(store)
    other = Place("cpu:1", "n", ActorConfig(), 2**30, 1)
    assert again.of(other, "tiny").speed.model == profiles.of(a_place(), "tiny").speed.model
    assert again.of(other, "tiny").load_seconds == 7.5
    assert again.of_place(other).keys() == {"tiny"}
    assert again.of(Place("cpu:1", "n", ActorConfig(), 2**30, 2), "tiny") is None  # other threads, other speed
    assert again.of(Place("cpu:1", "n", ActorConfig(dtype="bfloat16"), 2**30, 1), "tiny") is None
    assert again.of(Place("cpu:1", "n", ActorConfig(quantization="nf4"), 2**30, 1), "tiny") is None


def test_swaps_and_loads_are_of_the_base_model_and_outlive_a_restart(store):
    profiles = taught(store)
    assert profiles.of(a_place(), "tiny").swap_seconds is None
    profiles.swapped(a_place(), "tiny", leave=4.0)
    assert profiles.of(a_place(), "tiny").swap_seconds == 4.0 + 1.0  # its other half is guessed
    profiles.swapped(a_place(), "tiny", start=2.0)
    profiles.swapped(a_place(), "tiny", start=3.0)
    profiles.swapped(a_place(), "unheard", start=99.0)
    profiles.loaded(a_place(), "tiny", 7.5)
    profiles.save()
    again = Profiles(store)
    assert again.of(a_place(), "tiny").swap_seconds == pytest.approx(4.0 + 2.2)
    other = replace(BASE, ref="other", parameters=10**9)
    empty = ActorView("cpu:0", "cpu:0", ActorState.EMPTY, a_place().shape)
    (place,) = with_models([(empty, a_place(), None)], again, {"tiny": BASE, "other": other})
    assert place.seconds_to_load("tiny") == 7.5
    assert place.seconds_to_load("other") == pytest.approx((8.0 + 4e9 / 5e8) * 7.5 / (8.0 + 4e5 / 5e8))
    assert place.swap_seconds == pytest.approx(6.2)
    assert next(with_models([(empty, a_place(), None)], Profiles(None), {})).swap_seconds == 2.0


def test_a_profile_of_old_is_read(store):
    profile = taught(store).of(a_place(), "tiny").to_dict()
    del profile["leave_seconds"], profile["start_seconds"]
    assert Profile.from_dict(profile).swap_seconds is None


def test_accelerators_of_two_names_or_shares_have_two_profiles(store):
    profiles = Profiles(store)
    h100, t4 = (Place("cuda:0", "n", ActorConfig(num_gpus=1), device_name=name) for name in ("H100 80GB", "T4"))
    profiles.learn(h100, BASE, report())
    assert profiles.of_place(h100).keys() == {"tiny"}
    half = Place("cuda:0", "n", ActorConfig(num_gpus=0.5), device_name="H100 80GB")
    assert (
        profiles.of_place(half)
        == profiles.of_place(t4)
        == profiles.of_place(Place("cuda:0", "n", ActorConfig(num_gpus=1)))
        == {}
    )


def test_the_idle_memory_of_an_accelerator_is_all_that_is_allocated():
    """What no allocator counts is in the limit, so it is neither taken from the idle memory nor added to it."""
    on_cpu = idle_memory(a_place(), BASE, int(IDLE))
    on_cuda = idle_memory(Place("cuda:0", "n", ActorConfig(num_gpus=1)), BASE, int(IDLE))
    assert on_cuda.fixed_bytes == pytest.approx(on_cpu.fixed_bytes, rel=1e-6)


def test_the_token_budget_is_the_saturation_point(store):
    profile = taught(store).of(a_place(), "tiny")
    profile.largest = 2000
    assert token_budget(profile, a_place(), None, 400) == pytest.approx(9 * A / B, rel=0.15)
    assert token_budget(profile, a_place(), 800 * profile.memory.model.bytes_per_token, 400) == 720
    for room in (None, 1e12):  # the cluster file's word, which only a lack of memory goes against
        assert token_budget(profile, a_place(token_budget=64), room, 64) == 64
        assert token_budget(profile, a_place(token_budget=100_000), room, 100_000) == 100_000
    room = 800 * profile.memory.model.bytes_per_token
    assert token_budget(profile, a_place(token_budget=1000), room, 1000) == 720
    assert token_budget(profile, a_place(token_budget=1000), 2 * room, 720) == 1000


def test_a_budget_waits_for_enough_and_different_steps(store):
    few = taught(store, rounds=1).of(a_place(), "tiny")
    assert token_budget(few, a_place(), None, 1024) == 1024
    profiles = Profiles(None)
    for _ in range(20):
        profiles.learn(a_place(), BASE, report(tokens=(100, 110)))
    assert token_budget(profiles.of(a_place(), "tiny"), a_place(), None, 1024) == 1024


def test_a_fit_without_a_share_for_tokens_sets_no_budget():
    """All of the time in the adapters: a and b are near zero, and their ratio says nothing."""
    profile = Profile(
        SpeedFit(SpeedModel(1e-9, 1e-9, 0.5)), MemoryFit(MemoryModel(IDLE, PER_TOKEN)), None, 100, 100, 800
    )
    assert token_budget(profile, a_place(), None, 1024) == 1024


def test_the_idle_memory_of_a_quantised_base_replaces_its_own_weights_in_the_guess():
    """What the guess has beyond weights and reserve, the logits of a chunk, does not depend on how weights are kept."""
    plain, small = (idle_memory(a_place(quantization=q), BASE, int(IDLE)) for q in (None, "nf4"))
    assert small.fixed_bytes == pytest.approx(plain.fixed_bytes, rel=1e-6)
    assert small.fixed_bytes > IDLE


def test_a_budget_grows_to_twice_the_largest_batch_that_was_measured_and_no_further(store):
    """A fit says little of batches ten times as large, and a CPU's kernel would end the process at once."""
    profile = taught(store).of(a_place(), "tiny")
    profile.speed = SpeedFit(SpeedModel(0.5, B, C))  # saturated at 22,500 tokens
    assert profile.largest == 800
    assert token_budget(profile, a_place(), None, 400) == 1600
    assert token_budget(profile, a_place(), None, 4000) == 4000  # what it has stays


def test_a_budget_that_does_not_fit_goes_down_at_once_and_then_stays(store):
    profile = taught(store).of(a_place(), "tiny")
    room = 950 * profile.memory.model.bytes_per_token
    assert token_budget(profile, a_place(), room, 1000) == 855
    for waver in (0.92, 1.0, 1.05):
        assert token_budget(profile, a_place(), waver * room, 855) == 855


def test_plans_count_the_tokens_of_a_new_actor_whatever_the_budget_was_when_the_profile_was_made(store):
    """The profile is older than the cluster file's budget, and the actor has been given a larger one since."""
    profile = taught(store).of(a_place(token_budget=64), "tiny")
    assert profile is not None
    for settings, cap in (({}, 512), ({"token_budget": 256}, 256)):
        place = ActorView("cpu:0", "cpu:0", ActorState.READY, a_place(**settings).shape, "tiny")
        profiles = Profiles(store)
        profiles._profiles = {profile_key(a_place(), "tiny"): profile}
        places = [(place, a_place(**settings), report_with(8192))]
        (seen,) = with_models(places, profiles, {"tiny": BASE, "new": BASE})
        assert {ref: memory.token_cap for ref, memory in seen.memories.items()} == {"tiny": cap, "new": cap}
        assert seen.shape.token_budget == 8192  # by which the speed goes


def test_where_memory_is_short_plans_leave_half_of_the_room_to_shared_batches(store):
    profile = taught(store).of(a_place(), "tiny")
    for settings, budget in (({}, 512), ({"token_budget": 800}, 800)):
        model = profile.memory_model(a_place(**settings))
        room = 1000 * model.bytes_per_token
        assert leaving_room(model, int(model.fixed_bytes + room)).token_cap == pytest.approx(500, abs=2)
        assert leaving_room(model, int(model.fixed_bytes + 3 * room)).token_cap == budget
        assert leaving_room(model, None) == model
        assert leaving_room(model, 1).token_cap == 1


def test_the_margin_of_the_residuals_stays_free_and_outlives_a_restart(store):
    profiles = taught(store)
    profile = profiles.of(a_place(), "tiny")
    fixed = profile.memory.model.fixed_bytes
    profile.memory.observe(800, 0, 1.3 * (fixed + 800 * profile.memory.model.bytes_per_token))
    margin = profile.memory.margin
    assert margin > 0.1 * fixed
    assert profile.memory_model(a_place()).fixed_bytes == pytest.approx(profile.memory.model.fixed_bytes + margin)
    profiles.save()
    assert Profiles(store).of(a_place(), "tiny").memory_model(a_place()) == profile.memory_model(a_place())


def report_with(budget):
    return ActorReport("a", "boot", ActorPhase.READY, memory_idle=int(IDLE), token_budget=budget)


def feed(profile, *actors):
    """Steps of actors in turn: each a list of tokens; resident sets that never shrink, all by one true model."""
    highest = [0] * len(actors)
    for row in zip(*actors, strict=True):
        for number, tokens in enumerate(row):
            highest[number] = max(highest[number], int(IDLE + TRUE_PER_TOKEN * tokens))
            sample = StepSample(tokens, 0, 1, 0.1, highest[number] + int(ADAPTER), int(ADAPTER))
            profile.learn(f"boot{number}", sample, sticky=True)
    return profile.memory.model


TRUE_PER_TOKEN = 150e3
"""Twice what a guess has; a resident set of 1000 tokens is 150 MB beside the 500 MB of the idle actor."""


@pytest.mark.parametrize("actors", [1, 2, 3])
def test_two_actors_of_a_kind_do_not_spoil_what_one_has_shown(actors):
    """A resident set that was once taken stays taken: a peak belongs to the largest batch of that very actor."""
    random = np.random.default_rng(actors)
    rows = [random.integers(100, 1000, 200).tolist() for _ in range(actors)]
    rows[0][5] = 1000  # one actor has a large batch early, the others are smaller for long
    profile = Profile(SpeedFit(SpeedModel(A, B, C)), MemoryFit(MemoryModel(IDLE, TRUE_PER_TOKEN / 1.5)))
    found = feed(profile, *rows)
    assert found.bytes_per_token == pytest.approx(TRUE_PER_TOKEN, rel=0.25)
    for tokens in (500, 1000, 2000):
        assert found.fixed_bytes + found.bytes_per_token * tokens == pytest.approx(
            IDLE + TRUE_PER_TOKEN * tokens, rel=0.1
        )


def test_actors_that_are_gone_are_forgotten():
    profile = Profile(SpeedFit(SpeedModel(A, B, C)), MemoryFit(MemoryModel(IDLE, PER_TOKEN)))
    profiles = Profiles(None)
    profiles._profiles = {profile_key(a_place(), "tiny"): profile}
    for number in range(3):
        profiles.learn(a_place(), BASE, report(f"boot{number}"))
    assert set(profile.boots) == {"boot0", "boot1", "boot2"}
    profiles.forget_actors({"boot2", "other"})
    assert set(profile.boots) == {"boot2"}


def test_where_the_peak_is_reset_every_step_counts():
    """On CUDA the allocator's peak is that of the step; ten times as many rows as new largest batches are used."""
    profile = Profile(SpeedFit(SpeedModel(A, B, C)), MemoryFit(MemoryModel(IDLE, TRUE_PER_TOKEN / 1.5)))
    for tokens in np.random.default_rng(0).integers(100, 1000, 100).tolist():
        peak = int(IDLE + TRUE_PER_TOKEN * tokens + ADAPTER)
        profile.learn("boot", StepSample(tokens, 0, 1, 0.1, peak, int(ADAPTER)), sticky=False)
    assert profile.memory.model.bytes_per_token == pytest.approx(TRUE_PER_TOKEN, rel=0.1)


def written(store, monkeypatch):
    """The keys of every call that writes profiles."""
    calls, save = [], store.save_profiles
    monkeypatch.setattr(store, "save_profiles", lambda profiles: (calls.append(set(profiles)), save(profiles)))
    return calls


def test_an_idle_cluster_writes_no_profile(store, monkeypatch):
    """Every tick tells again how long the base model took to load."""
    profiles, calls = taught(store), written(store, monkeypatch)
    for _ in range(5):
        profiles.loaded(a_place(), "tiny", 7.5)
        profiles.save()
    assert len(calls) == 1
    profiles.loaded(a_place(), "tiny", 8.0)
    profiles.save()
    assert len(calls) == 2


def test_a_busy_cluster_writes_its_profiles_now_and_then(store, monkeypatch):
    profiles, calls = Profiles(store), written(store, monkeypatch)
    for _ in range(20):
        profiles.learn(a_place(), BASE, report())
        profiles.save_now_and_then()
    assert len(calls) == 1
    monkeypatch.setattr("orchestrator.knowledge.profiles._SAVE_SECONDS", 0.0)
    profiles.save_now_and_then()
    profiles.save_now_and_then()
    assert len(calls) == 2
    assert Profiles(store).of(a_place(), "tiny").samples == 20 * 12


def test_tokens_that_are_only_run_forward_take_time_and_no_memory_for_activations():
    """Else a device would seem slow to all jobs because KTO trains there."""
    profile = Profile(SpeedFit(SpeedModel(A, B, C)), MemoryFit(MemoryModel(IDLE, PER_TOKEN)))
    for n in (100, 800, 300, 500) * 10:
        seconds = A + B * (n + n) + C  # two forwards of n tokens cost what their training costs
        profile.learn("boot", StepSample(n, 0, 1, seconds, int(IDLE + PER_TOKEN * n), 0, 2 * n), sticky=False)
    assert profile.speed.model.token_seconds == pytest.approx(B, rel=0.02)
    assert profile.memory.model.bytes_per_token == pytest.approx(PER_TOKEN, rel=0.02)


def test_what_was_never_loaded_or_swapped_on_a_place_is_taken_from_what_was(store):
    """On the same kind of place another base model takes as many times its guess; elsewhere the same one as long."""
    larger = replace(BASE, ref="larger", parameters=10**9)
    other = replace(a_place(), settings=ActorConfig(dtype="bfloat16"))
    profiles = taught(store)

    def view(place):
        seen = ActorView("x", "x", ActorState.READY, place.shape, "tiny")
        (found,) = with_models([(seen, place, None)], profiles, {"tiny": BASE, "larger": larger})
        return found

    guess = view(a_place())
    profiles.loaded(a_place(), "tiny", 3 * guess.loads["tiny"])
    profiles.swapped(a_place(), "tiny", leave=4.0, start=5.0)
    assert view(a_place()).loads["larger"] == pytest.approx(3 * guess.loads["larger"])
    assert view(other).loads["tiny"] == pytest.approx(3 * guess.loads["tiny"])
    assert view(other).swap_seconds == 9.0


def test_a_speed_is_a_guess_until_enough_steps_were_measured_and_in_doubt_until_they_differ(store):
    def doubt(profiles):
        seen = ActorView("x", "x", ActorState.READY, a_place().shape, "tiny")
        (found,) = with_models([(seen, a_place(), None)], profiles, {"tiny": BASE})
        assert found.guessed("tiny") == np.isinf(found.doubts["tiny"])
        return found.doubts["tiny"]

    assert doubt(Profiles(None)) == doubt(taught(store, rounds=1)) == np.inf
    alike = Profiles(None)
    for _ in range(10):
        alike.learn(a_place(), BASE, report(tokens=(400,)))
    assert 5 * doubt(taught(store)) < doubt(alike) < np.inf
