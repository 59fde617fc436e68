"""Memory: what is measured, what is predicted, and what an actor does at its limit."""

import gc
import time
import weakref
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_actor.adapters.kinds.dora import weight_norm
from gpu_actor.adapters.shapes import adapter_activation_bytes, copy_bytes, frozen_values
from gpu_actor.batch.shared_batch import split_samples
from gpu_actor.contract.description import Activations, BaseDescription, LinearShape
from gpu_actor.contract.footprint import activation_bytes, worst_micro_batch_tokens
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.contract.report import TenantState
from gpu_actor.device import memory, stopwatch
from gpu_actor.device.memory import MemoryMeter, control_group_limits
from gpu_actor.training import trainer as trainer_module
from gpu_actor.training.trainer import CoTrainer
from support.engine import flat, make_spec, make_tenant, run_all, tiny_hooked
from support.oracle import same_bytes
from support.tiny import token_rows

MIB = 2**20


def test_the_peak_is_that_since_the_restart():
    meter = MemoryMeter("cpu")
    meter.restart()
    before = meter.peak()
    block = np.ones(64 * MIB, dtype=np.uint8)
    del block
    assert meter.peak() >= before + 60 * MIB
    meter.release()
    meter.restart()
    assert meter.peak() < before + 40 * MIB
    assert 0 < meter.free(meter.used() + 10 * MIB) <= 11 * MIB
    assert meter.free(1) == 0


@pytest.mark.parametrize(
    ("own", "files", "limits"),
    [
        ("0::/", {"memory.max": "max"}, []),
        ("0::/", {"memory.max": "1000"}, [1000]),  # a container sees its own group as the root
        ("0::/kube/pod", {"kube/pod/memory.max": "max", "kube/memory.max": "700", "memory.max": "900"}, [700, 900]),
        ("0::/not/here", {"memory.max": "900"}, [900]),  # the host's path, which a container does not see
        ("4:cpu,memory:/docker/1\n3:cpuset:/", {"memory/docker/1/memory.limit_in_bytes": "800"}, [800]),
        ("4:memory:/docker/1\n0::/", {"memory/memory.limit_in_bytes": "800"}, [800]),
        ("3:cpuset:/", {"memory.max": "5"}, []),
    ],
)
def test_the_limits_of_control_groups_are_those_of_all_that_hold_the_process(tmp_path, own, files, limits):
    (tmp_path / "own").write_text(f"{own}\n")
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert control_group_limits(tmp_path / "root", tmp_path / "own") == limits
    assert control_group_limits(tmp_path / "root", tmp_path / "nowhere") == []


def test_an_accelerator_is_shared_and_keeps_what_no_allocator_counts():
    gib = 2**30
    assert memory.accelerator_limit(80 * gib, 1.0) == 79 * gib
    assert memory.accelerator_limit(80 * gib, 0.5) == 39 * gib  # a context of its own for each
    assert memory.accelerator_limit(6 * gib, 0.25) == gib * 3 // 4  # a small share is not all reserve


def test_a_container_has_no_more_memory_than_it_may_use(monkeypatch):
    total = psutil.virtual_memory().total
    for limits, whole in (([], total), ([2**62], total), ([2**30, 2**29], 2**29)):
        monkeypatch.setattr(memory, "control_group_limits", lambda limits=limits: limits)
        assert memory.memory_limit("cpu") == int(0.8 * whole)


class LivingBytes(TorchDispatchMode):
    """The most bytes that results of torch's functions take at a time, views left out."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result._is_view() and result.data_ptr() not in self.alive:
            place = result.data_ptr()
            self.alive[place] = result.untyped_storage().nbytes()
            weakref.finalize(result, self.alive.pop, place, None)
            self.peak = max(self.peak, sum(self.alive.values()))
        return result


def test_measuring_doras_lengths_takes_the_bytes_that_are_predicted():
    """On a base of 16 bits: one adapted weight in fp32, and no copy of the base's beside it."""
    base = tiny_hooked(dtype=torch.bfloat16)
    lora = LoraConfig(r=2, use_dora=True, target_modules=["up_proj"])
    weights = base.new_adapter(lora)
    weights.initialise(0)
    index = next(iter(weights.layers))
    layer = weights._bases[index]
    with LivingBytes() as living:
        norm = weight_norm(*weights.layers[index][:2], weights.plans[index].scaling, layer)
    assert living.peak <= 4 * frozen_values(base.description, lora) + 2 * norm.nbytes
    torch.testing.assert_close(norm, torch.linalg.vector_norm(layer.weight.float(), dim=1))


LINEARS = tuple(LinearShape(f"model.layers.{i}.mlp.up_proj", 64, 100) for i in range(2))
BASE = BaseDescription("tiny", "llama", LINEARS, 64, 2, 128, 100_000)


def test_a_description_survives_json():
    base = BaseDescription(**{**vars(BASE), "activations": Activations(5.0, 1.0, 2.0)})
    assert BaseDescription.from_dict(base.to_dict()) == base
    assert BaseDescription.from_dict(BASE.to_dict()) == BASE


def test_attention_that_is_not_fused_costs_the_square_of_the_longest():
    base = BaseDescription(**{**vars(BASE), "activations": Activations(5.0, 1.0)})
    short, long = (activation_bytes(base, 1000, longest=n) for n in (10, 500))
    assert long - short == 1000 * 490


@pytest.mark.parametrize("kind", [{}, {"peft_type": "VERA"}])
def test_dropout_masks_count(kind):
    field = "vera_dropout" if kind else "lora_dropout"
    plain, masked = (LoraConfig(r=4, **kind, **{field: p}) for p in (0.0, 0.1))
    extra = adapter_activation_bytes(BASE, masked, 10) - adapter_activation_bytes(BASE, plain, 10)
    assert extra == 10 * 2 * 64


def test_a_group_on_a_gpu_keeps_copies_of_its_adapters_and_no_masks():
    """Two bytes a value for the copy and two for the sums of gradients; other kinds are what they are on a CPU."""
    plain, masked = (LoraConfig(r=4, lora_dropout=p) for p in (0.0, 0.1))
    kept = [adapter_activation_bytes(BASE, lora, 10, "cuda") for lora in (plain, masked)]
    assert kept == [adapter_activation_bytes(BASE, plain, 10)] * 2
    values = 2 * 4 * (64 + 100)
    assert copy_bytes(BASE, masked) == 4 * values
    other = LoraConfig(r=4, lora_dropout=0.1, use_dora=True)
    assert copy_bytes(BASE, other) == 0
    assert adapter_activation_bytes(BASE, other, 10, "cuda") == adapter_activation_bytes(BASE, other, 10)


@pytest.mark.parametrize(
    ("batch", "cutoff", "longest", "worst"),
    [(2, 100, None, 200), (8, 1024, None, 1024), (8, 1024, 50, 400), (1, 4096, None, 4096), (4, 4096, 900, 1024)],
)
def test_the_worst_micro_batch_is_capped_but_holds_one_sample(batch, cutoff, longest, worst):
    from gpu_actor.contract.config import TrainingConfig

    training = TrainingConfig(per_device_train_batch_size=batch, cutoff_len=cutoff)
    assert worst_micro_batch_tokens(training, 1024, longest) == worst


def test_micro_batches_are_cut_between_samples_only():
    assert split_samples([5, 5, 5, 5], most=10) == [range(2), range(2, 4)]
    assert split_samples([50, 5, 5], most=10) == [range(1), range(1, 3)]
    assert split_samples([1, 1, 1], parts=3) == [range(1), range(1, 2), range(2, 3)]
    assert split_samples([5, 5]) == [range(2)]


def test_a_micro_batch_above_the_cap_gives_the_same_update(tmp_path):
    base = tiny_hooked(dtype=torch.float64)
    training = {"max_steps": 6, "per_device_train_batch_size": 6, "learning_rate": 1e-2}
    whole, cut = (make_tenant(base, make_spec(tmp_path, n, token_rows(18, seed=4), None, training)) for n in "ab")
    run_all(base, [whole], 4096)
    trainer = CoTrainer(base, 4096)
    trainer.micro_batch_cap = 60
    trainer.attach(cut)
    assert max(part.tokens for part in cut.pending) <= 60
    assert len(cut.pending) > 1
    while not trainer.idle:
        trainer.step()
    assert torch.allclose(flat(whole), flat(cut), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_an_actor_pressed_to_its_limit_makes_smaller_batches_and_loses_no_job(tmp_path):
    """The limit allows 70 % of what a batch takes: as if predictions were 30 % too low."""
    base = tiny_hooked(hidden_size=64, intermediate_size=1024, num_hidden_layers=6)
    training = {"max_steps": 3, "per_device_train_batch_size": 16, "cutoff_len": 256}
    rows = token_rows(96, seed=5, low=200, high=250)
    make = lambda name: make_tenant(base, make_spec(tmp_path, name, rows, {"r": 8}, training))  # noqa: E731
    trainer = CoTrainer(base, 8192)
    trainer.micro_batch_cap = 8192
    trainer.meter.memory.release()
    idle = trainer.meter.memory.used()
    trainer.attach(make("free"))
    trainer.step()
    taken = trainer.meter.peak - idle
    assert taken > 50 * MIB
    trainer.detach("free", keep=False)
    trainer.meter.memory.release()
    trainer.memory_limit = trainer.meter.memory.used() + int(0.7 * taken)
    for name in ("one", "two"):
        trainer.attach(make(name))
    peaks = []
    while not trainer.idle:
        trainer.step()
        peaks.append(trainer.meter.peak)
    assert {r.state for r in trainer.reports() if r.job_id != "free"} == {TenantState.SUCCEEDED}
    assert trainer.memory_shortages >= 1
    assert trainer.token_budget < 8192
    # the resident set wavers by a few MiB; unheeded, every batch would be 0.3 x taken above the limit
    assert peaks[0] > trainer.memory_limit > max(peaks[len(peaks) // 2 :]) - 0.1 * taken
    trainer.set_budget(8192)  # the scheduler knows less than the actor has seen
    assert trainer.token_budget < 8192


@pytest.mark.slow
def test_a_pressed_actor_takes_larger_batches_when_there_is_room_again(tmp_path):
    """A neighbour with 200 MiB goes: new jobs have whole micro-batches again, the one in training keeps its parts."""
    base = tiny_hooked()
    training = {"max_steps": 50, "per_device_train_batch_size": 16}
    jobs = [make_tenant(base, make_spec(tmp_path, n, token_rows(64, seed=5), {"r": 4}, training)) for n in ("a", "b")]
    trainer = CoTrainer(base)
    trainer.attach(jobs[0])
    trainer.step()
    whole = max(part.tokens for part in jobs[0].pending)
    neighbour = np.ones(200 * MIB, dtype=np.uint8)
    trainer.meter.memory.release()
    trainer.memory_limit = trainer.meter.memory.used() + 20 * MIB
    trainer._token_bytes = 100 * MIB / whole
    trainer._shrink(whole // 5, "as if the limit had been passed by far")
    assert len(jobs[0].pending) > 1
    trainer._use_room()  # nobody has left: nothing changes
    assert trainer.token_budget == trainer.micro_batch_cap == whole // 5
    del neighbour
    while trainer.token_budget == whole // 5 and not trainer.idle:
        trainer.step()
    assert 10 < jobs[0].progress.step < 50
    trainer.attach(jobs[1])
    assert len(jobs[1].pending) == 1
    assert len(jobs[0].pending) > 1
    assert trainer.token_budget <= 0.9 * 220 * MIB / trainer._token_bytes


@pytest.mark.slow
def test_what_has_ended_is_freed_the_base_model_too(tmp_path):
    base = tiny_hooked()
    tenant = make_tenant(base, make_spec(tmp_path, "a", None, {"r": 8}, {"max_steps": 2}))
    trainer = run_all(base, [tenant])
    trainer.forget("a", 1)
    ended = [weakref.ref(tenant), weakref.ref(tenant.weights)]
    del tenant
    gc.collect()
    assert [kept() for kept in ended] == [None, None]
    unused = weakref.ref(base)
    del base, trainer
    gc.collect()
    assert unused() is None


def test_a_limit_that_is_kept_changes_no_bit(tmp_path):
    base = tiny_hooked()
    training = {"max_steps": 5, "per_device_train_batch_size": 2}
    free, limited = (make_tenant(base, make_spec(tmp_path, n, token_rows(9, seed=2), None, training)) for n in "ab")
    run_all(base, [free])
    trainer = CoTrainer(base, memory_limit=2**40)
    trainer.attach(limited)
    while not trainer.idle:
        trainer.step()
    assert trainer.memory_shortages == 0
    assert same_bytes(flat(free), flat(limited))


def test_samples_leave_the_warm_up_and_evaluations_out(tmp_path, monkeypatch):
    """An evaluation that takes 128 MiB and an hour, of a model that takes next to nothing."""
    base = tiny_hooked()
    training = {"max_steps": 6, "per_device_train_batch_size": 2, "eval_steps": 1}
    spec = make_spec(tmp_path, "a", token_rows(12, seed=2), None, training, {"val_size": 4})
    trainer = CoTrainer(base)
    evaluate = trainer_module.evaluate

    def at_length(*arguments):
        nonlocal hours
        block = np.ones(128 * MIB, dtype=np.uint8)
        hours += 1
        del block
        return evaluate(*arguments)

    hours, now = 0, time.monotonic
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(monotonic=lambda: now() + 3600 * hours))
    monkeypatch.setattr(trainer_module, "evaluate", at_length)
    tenant = make_tenant(base, spec)
    trainer.attach(tenant)
    trainer.meter.memory.release()
    idle = trainer.meter.memory.used()
    while not trainer.idle:
        trainer.step()
    assert hours >= 6
    samples = trainer.meter.take()
    assert len(samples) == 4  # of 6: not the warm-up, nor the last, after which the adapter is gone
    assert trainer.meter.take() == ()
    for sample in samples:
        assert sample.adapters == 1
        assert sample.adapter_bytes == tenant.weights.bytes_in_training
        assert 0 < sample.tokens <= sample.squares
        assert 0 < sample.seconds < 3600
        assert sample.adapter_bytes < sample.peak_bytes < idle + 64 * MIB
    assert trainer.meter.highest > idle + 100 * MIB
    assert not trainer.meter._warm, "an adapter that has ended is no longer warm"


def test_what_others_load_meanwhile_is_no_sample_and_makes_nobodys_batches_smaller(tmp_path):
    base = tiny_hooked()
    trainer = CoTrainer(base, memory_limit=1)  # whatever is done is above it
    trainer.attach(make_tenant(base, make_spec(tmp_path, "a", None, None, {"max_steps": 9})))
    cap = trainer.micro_batch_cap
    with trainer.meter.disturbed():
        for _ in range(3):
            trainer.step()
    assert (trainer.memory_shortages, trainer.micro_batch_cap, trainer.meter.take()) == (0, cap, ())
    trainer.step()
    assert trainer.memory_shortages == 1
    assert len(trainer.meter.take()) == 1
