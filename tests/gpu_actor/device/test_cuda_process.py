"""What a process sets before it trains on a GPU, seen through a torch that only says what it was told."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gpu_actor.actor import GpuActor
from gpu_actor.contract.config import ActorOptions
from gpu_actor.contract.footprint import first_token_budget
from gpu_actor.contract.report import ActorPhase, ActorReport
from gpu_actor.device import cuda_process
from gpu_actor.device.memory import MemoryMeter
from gpu_actor.hosting import hosted_base
from gpu_actor.hosting.hosted_base import HostedBase
from gpu_actor.model.base_model import BaseModel


@pytest.fixture
def told(monkeypatch):
    """What torch was told, of a card of 80 GiB."""
    told = {}
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda on: told.update(cudnn=on))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: told.update(share=share, device=device)
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 * 2**30))
    return told


@pytest.mark.parametrize(
    ("device", "share", "expected"),
    [
        ("cuda", 1.0, {"cudnn": False}),
        ("cuda:1", 0.5, {"cudnn": False, "share": 0.5 - 1 / 160, "device": "cuda:1"}),
        ("cpu", 0.5, {}),
    ],
)
def test_before_a_base_is_loaded(told, monkeypatch, device, share, expected):
    class LoadedError(Exception):
        pass

    def load(*_, **__):
        assert told == expected
        raise LoadedError

    monkeypatch.setattr(BaseModel, "load", load)
    options = ActorOptions(name="a", base_model="nowhere", device=device, memory_share=share)
    with pytest.raises(LoadedError):
        HostedBase.load(options, MemoryMeter("cpu"), ActorReport("a", "boot", ActorPhase.LOADING))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpus_first_budget_is_that_of_its_room_and_its_dtype(tiny_base, dtype, tiny_description):
    described = tiny_description
    options = ActorOptions(name="a", base_model=tiny_base, device="cuda")
    base = SimpleNamespace(device=torch.device("cuda"), dtype=dtype, description=replace(described, activations=None))
    room = 2**23
    expected = first_token_budget(described, "cuda", room, dtype.itemsize)
    assert 128 < expected < 8192
    assert hosted_base._first_budget(base, options, room) == expected
    base.device = torch.device("cpu")
    assert hosted_base._first_budget(base, options, room) == 512


@pytest.mark.parametrize(
    ("device", "given", "expected"),
    [
        ("cuda", {}, "expandable_segments:True"),
        ("cuda:1", {"PYTORCH_ALLOC_CONF": "backend:native"}, "backend:native"),
        ("cuda", {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, None),
        ("cpu", {}, None),
    ],
)
def test_an_actor_lets_blocks_of_memory_grow_before_torch_is_imported(monkeypatch, device, given, expected):
    environment = dict(given)
    monkeypatch.setattr(cuda_process.os, "environ", environment)
    seen = []
    monkeypatch.setattr(GpuActor, "_start_host", lambda _: seen.append(environment.get("PYTORCH_ALLOC_CONF")))
    actor = GpuActor({"name": "a", "base_model": "nowhere", "device": device})
    actor._thread.join()
    assert seen == [expected]
