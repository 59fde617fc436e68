"""The memory of GPUs before any actor runs there: what nodes are asked, and what follows from their answers."""

import asyncio
from dataclasses import replace

import pytest

from gpu_actor.contract.description import Activations, BaseDescription, LinearShape
from gpu_actor.device.accelerators import Accelerator, read_accelerators
from gpu_actor.device.memory import accelerator_limit
from orchestrator.cluster import node_gpus
from orchestrator.cluster.cluster_config import ActorConfig, ClusterConfig
from orchestrator.cluster.node_gpus import NodeGpus
from orchestrator.cluster.places import listed_places
from orchestrator.control.admission import _misfits
from orchestrator.jobs.job import JobSpec
from orchestrator.knowledge.place_models import with_models
from orchestrator.knowledge.profiles import Profiles

GIB = 2**30
SMALL, LARGE = Accelerator("T4", 16 * GIB), Accelerator("H100", 80 * GIB)
LINEARS = (LinearShape("model.layers.0.self_attn.q_proj", 4096, 4096),)
SEVEN_BILLION = BaseDescription("org/7b", "llama", LINEARS, 4096, 32, 32000, 7 * 10**9)

TOKEN_HUNGRY = replace(SEVEN_BILLION, activations=Activations(10 * 2**20, half=Activations(5 * 2**20)))


def node(name, gpus=1.0, alive=True):
    return {"NodeID": name, "Alive": alive, "Resources": {"GPU": gpus} if gpus else {}}


def heard(answers, *rounds):
    """The GPUs of nodes after some looks at the cluster, and who was asked."""
    asked = []

    async def ask(name):
        asked.append(name)
        if isinstance(answers[name], Exception):
            raise answers[name]
        return answers[name]

    async def look():
        gpus = NodeGpus(ask)
        for nodes in rounds:
            gpus.ask(nodes)
        await gpus.settled()
        return gpus

    return asyncio.run(look()), asked


def test_what_nvidia_smi_prints_is_read():
    text = "81559, NVIDIA H100 80GB HBM3\n[N/A], NVIDIA GB10\n"
    assert read_accelerators(text) == [Accelerator("NVIDIA H100 80GB HBM3", 81559 * 2**20)]
    assert read_accelerators("No devices were found\n") == []


def test_each_living_node_with_a_gpu_is_asked_once():
    nodes = [node("a"), node("b", 2.0), node("cpu", 0), node("dead", alive=False)]
    gpus, asked = heard({"a": [SMALL], "b": [SMALL, LARGE]}, nodes, nodes)
    assert sorted(asked) == ["a", "b"]
    assert (gpus.at("a"), gpus.at("b"), gpus.at("cpu"), gpus.at(None)) == (SMALL, LARGE, None, LARGE)


def test_a_node_that_cannot_answer_leaves_its_memory_open():
    gpus, _ = heard({"a": RuntimeError("no such program"), "b": []}, [node("a"), node("b")])
    assert (gpus.at("a"), gpus.at("b"), gpus.at(None)) == (None, None, None)


def test_a_place_takes_what_is_known_and_an_actor_only_what_the_cluster_file_says():
    """Ray may give it a smaller one: an actor measures its own."""
    whole, half, limited, cpu = (
        place.on(LARGE)
        for place in listed_places(
            [
                ActorConfig(num_gpus=1),
                ActorConfig(num_gpus=0.5),
                ActorConfig(num_gpus=1, memory_limit=7),
                ActorConfig(memory_limit=5),
            ],
            [node("a")],
        )
    )
    assert (whole.memory_limit, half.memory_limit) == (79 * GIB, 39 * GIB)
    assert (limited.memory_limit, cpu.memory_limit) == (7, 5)
    assert (whole.device_name, cpu.device_name) == ("H100", None)
    assert [place.options("n", "m", False).memory_limit for place in (whole, half, limited, cpu)] == [None, None, 7, 5]
    assert whole.on(None) == whole


def test_what_no_gpu_holds_is_refused_at_submission_with_both_numbers():
    spec = JobSpec(name="a", base_model="org/7b", dataset={"path": "/d.jsonl"}, output_dir="/o")
    (place,) = listed_places([ActorConfig(num_gpus=1)], [node("a")])
    for gpu, fits in ((LARGE, True), (SMALL, False), (None, True)):
        there = place.on(gpu)
        (view,) = with_models([(there.view, there, None)], Profiles(None), {"org/7b": SEVEN_BILLION})
        problems = [str(problem) for problem in _misfits(spec, SEVEN_BILLION, [view])]
        assert len(problems) == (0 if fits else 1)
        assert fits or f"the roomiest actor may use 15.0 GiB ({accelerator_limit(16 * GIB, 1)} bytes)" in problems[0]


@pytest.mark.parametrize("actors", ["auto", [{"num_gpus": 1}]])
def test_the_offline_plan_knows_the_gpus_of_this_machine(monkeypatch, actors):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(node_gpus, "accelerators", lambda: [SMALL])
    (place,) = node_gpus.places_on_this_machine(ClusterConfig(actors=actors).actors)
    assert (place.device, place.memory_limit, place.device_name) == ("cuda", 15 * GIB, "T4")


def test_before_anything_is_measured_half_of_a_gpus_room_is_left_to_adapters():
    """Not so on a CPU, whose actors begin with the default whatever they have room for."""
    caps = []
    for settings, limit in (({"num_gpus": 1}, 23 * GIB), ({}, 40 * GIB), ({"num_gpus": 1}, 400 * GIB)):
        (place,) = listed_places([ActorConfig(dtype="bfloat16", memory_limit=limit, **settings)], [node("a")])
        (view,) = with_models([(place.view, place, None)], Profiles(None), {SEVEN_BILLION.ref: TOKEN_HUNGRY})
        model = view.memories[SEVEN_BILLION.ref]
        caps.append((model.token_cap, int((limit - model.fixed_bytes) / model.bytes_per_token)))
    (small, room), (on_cpu, _), (large, _) = caps
    assert room // 2 - 1 <= small <= room // 2 + 1 < 8192
    assert (on_cpu, large) == (512, 8192)
