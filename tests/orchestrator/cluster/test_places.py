"""Places for actors: one per GPU, or the CPU, or as the cluster file says."""

import os

from gpu_actor.device.memory import memory_limit
from orchestrator.cluster.cluster_config import ActorConfig
from orchestrator.cluster.places import HEAD, find_places, listed_places


def node(name, gpus=0.0, head=False, alive=True):
    resources = {"CPU": 4.0, **({"GPU": gpus} if gpus else {}), **({HEAD: 1.0} if head else {})}
    return {"NodeID": name, "Alive": alive, "Resources": resources}


HEAD_NODE, WORKER = node("aaaaaaaa", head=True), node("bbbbbbbb", gpus=2.0)


def test_without_a_gpu_there_is_one_actor_on_the_head_nodes_cpu():
    (place,) = find_places([HEAD_NODE, node("cccccccc")])
    assert (place.id, place.device, place.node_id, place.settings.num_gpus) == ("cpu:0", "cpu", "aaaaaaaa", 0)
    assert place.memory_limit == memory_limit("cpu")


def test_each_gpu_of_each_living_node_is_a_place():
    places = find_places([WORKER, node("dead", gpus=8.0, alive=False), node("aaaaaaaa", gpus=1.0, head=True)])
    assert [(place.id, place.node_id) for place in places] == [
        ("cuda:0", "aaaaaaaa"),
        ("bbbbbb/cuda:0", "bbbbbbbb"),
        ("bbbbbb/cuda:1", "bbbbbbbb"),
    ]
    assert {(place.device, place.settings.num_gpus, place.memory_limit) for place in places} == {("cuda", 1, None)}
    assert [place.id for place in find_places([HEAD_NODE, WORKER])] == ["bbbbbb/cuda:0", "bbbbbb/cuda:1"]


def test_listed_actors_on_a_cpu_share_its_memory_and_cores():
    places = listed_places(
        [ActorConfig(), ActorConfig(num_gpus=1), ActorConfig(memory_limit=5), ActorConfig()], [HEAD_NODE]
    )
    assert [place.id for place in places] == ["cpu:0", "cuda:0", "cpu:1", "cpu:2"]
    rest = (memory_limit("cpu") - 5) // 2
    assert [place.memory_limit for place in places] == [rest, None, 5, rest]
    all_of_it = listed_places([ActorConfig(memory_limit=memory_limit("cpu")), ActorConfig()], [HEAD_NODE])
    assert [place.memory_limit for place in all_of_it] == [memory_limit("cpu"), 1]
    assert places[0].cpu_threads == max(1, os.cpu_count() // 3)
    assert listed_places([ActorConfig()], [HEAD_NODE])[0].cpu_threads is None


def test_a_cpu_actor_is_on_a_node_with_its_labels_and_nowhere_without_one():
    here = [node(name) | {"Labels": {"zone": "b"}} for name in ("bbbbbbbb", "cccccccc")]
    here[0]["Resources"]["memory"] = 1000.0
    zone = ActorConfig(node_labels="zone=b")
    listed = [ActorConfig(), zone, zone, ActorConfig(node_labels="zone=b,disk=fast"), zone]
    places = listed_places(listed, [*here, HEAD_NODE])
    found = [(place.id, place.node_id, place.memory_limit) for place in places]
    assert found[0] == ("cpu:0", "aaaaaaaa", memory_limit("cpu"))
    assert found[1:] == [("cpu:1", "bbbbbbbb", 500), ("cpu:2", "cccccccc", 1), ("cpu:4", "bbbbbbbb", 500)]
    assert [place.cpu_threads for place in places] == [None, 2, None, 2]
    here[0]["Alive"] = False
    assert [place.node_id for place in listed_places(listed, [*here, HEAD_NODE])] == ["aaaaaaaa", *["cccccccc"] * 3]


def test_an_actor_gets_what_the_cluster_file_says():
    config = ActorConfig(num_gpus=1, dtype="bfloat16", token_budget=77, gradient_checkpointing=True, memory_limit=9)
    (place,) = listed_places([config], [HEAD_NODE])
    options = place.options("name", "tiny", trust_remote_code=True)
    assert (options.device, options.dtype, options.token_budget, options.memory_limit) == ("cuda", "bfloat16", 77, 9)
    assert options.gradient_checkpointing
    assert options.trust_remote_code
    assert options.memory_share == 1.0
    (half,) = listed_places([ActorConfig(num_gpus=0.5)], [HEAD_NODE])
    assert half.options("name", "tiny", trust_remote_code=False).memory_share == 0.5
    (on_cpu,) = listed_places([ActorConfig()], [HEAD_NODE])
    assert on_cpu.options("name", "tiny", trust_remote_code=False).memory_share == 1.0
    assert (place.shape.dtype_bytes, place.shape.token_budget, place.shape.checkpointing) == (2, 77, True)
