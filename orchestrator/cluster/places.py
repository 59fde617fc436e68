"""The places where actors can be: found on the cluster's nodes, or listed in the cluster file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from gpu_actor.contract.config import ActorOptions
from gpu_actor.contract.footprint import DEFAULT_TOKEN_BUDGET, DTYPE_BYTES
from gpu_actor.device.accelerators import Accelerator
from gpu_actor.device.memory import accelerator_limit, memory_limit
from orchestrator.cluster.cluster_config import ActorConfig
from orchestrator.scheduler.estimate import device_kind
from orchestrator.scheduler.view import ActorShape, ActorState, ActorView

HEAD = "node:__internal_head__"
_SHORTEST_ID = 6  # digits of a node's id, as places of other nodes than the head have them


@dataclass(frozen=True)
class Place:
    """A place for one actor.

    Attributes:
        id: Unique in the cluster, and the same after a restart: `cpu:0`, `cuda:1`, `3f9a12/cuda:0`.
        node_id: The node it is on; None where Ray chooses.
        settings: What the cluster file says of it, or the defaults.
        memory_limit: Bytes its actor may use, as far as the orchestrator knows; None: all that the device has.
        cpu_threads: Threads of its actor; None: one per core.
        device_name: What its accelerator calls itself; None: a CPU, or not known yet.
    """

    id: str
    node_id: str | None
    settings: ActorConfig
    memory_limit: int | None = None
    cpu_threads: int | None = None
    device_name: str | None = None

    def on(self, gpu: Accelerator | None) -> Place:
        """This place with the memory and the name of its GPU; unchanged if it has none, or none was listed."""
        if gpu is None or not self.settings.num_gpus:
            return self
        limit = self.memory_limit or accelerator_limit(gpu.total_bytes, self.settings.num_gpus)
        return replace(self, memory_limit=limit, device_name=self.device_name or gpu.name)

    @property
    def device(self) -> str:
        """As `ActorOptions` names it."""
        return self.settings.resolved_device

    @property
    def token_budget(self) -> int:
        """Most tokens in one shared batch."""
        return self.settings.token_budget or DEFAULT_TOKEN_BUDGET[device_kind(self.device)]

    @property
    def shape(self) -> ActorShape:
        """What memory predictions need to know of it."""
        return ActorShape(
            self.device,
            self.token_budget,
            DTYPE_BYTES[self.settings.dtype],
            self.settings.gradient_checkpointing,
            self.settings.quantization,
        )

    @property
    def view(self) -> ActorView:
        """As the scheduler sees it as long as no actor is there and nothing was measured."""
        return ActorView(
            id=self.id,
            name=self.id,
            state=ActorState.EMPTY,
            shape=self.shape,
            pinned=self.settings.base_model,
            memory_limit=self.memory_limit,
        )

    def options(
        self,
        name: str,
        base_model: str,
        trust_remote_code: bool,
        allow_pickle: bool = False,
        allowed_roots: Sequence[str] = (),
    ) -> ActorOptions:
        """The options of an actor here.

        Args:
            name: Of the actor.
            base_model: What it hosts.
            trust_remote_code: Whether Python code that comes with the base model may run.
            allow_pickle: Whether pickled weights are read.
            allowed_roots: Folders below which jobs write; none: anywhere.
        """
        return ActorOptions(
            name=name,
            base_model=base_model,
            device=self.device,
            dtype=self.settings.dtype,
            quantization=self.settings.quantization,
            memory_limit=self.settings.memory_limit if self.settings.num_gpus else self.memory_limit,
            memory_share=self.settings.num_gpus or 1.0,
            token_budget=self.settings.token_budget,
            cpu_threads=self.cpu_threads,
            gradient_checkpointing=self.settings.gradient_checkpointing,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            allowed_roots=tuple(allowed_roots),
        )


def configured_places(
    actors: Literal["auto"] | Sequence[ActorConfig], nodes: Sequence[Mapping[str, Any]]
) -> list[Place]:
    """The places that a cluster file asks for.

    Args:
        actors: The cluster file's list, or `auto`.
        nodes: As `ray.nodes()` gives them.
    """
    return find_places(nodes) if isinstance(actors, str) else listed_places(actors, nodes)


def find_places(nodes: Sequence[Mapping[str, Any]]) -> list[Place]:
    """One place per GPU of the cluster, or one on the head node's CPU where there is no GPU.

    Args:
        nodes: As `ray.nodes()` gives them.
    """
    alive = sorted((node for node in nodes if node["Alive"]), key=_head_first)
    places = []
    for node in alive:
        prefix = "" if HEAD in node["Resources"] else f"{node['NodeID'][:6]}/"
        for number in range(int(node["Resources"].get("GPU", 0))):
            places.append(Place(f"{prefix}cuda:{number}", node["NodeID"], ActorConfig(num_gpus=1)))
    if places:
        return places
    return listed_places([ActorConfig()], nodes)


def listed_places(actors: Sequence[ActorConfig], nodes: Sequence[Mapping[str, Any]]) -> list[Place]:
    """The places of a cluster file.

    Actors on a CPU are spread over the nodes that they may be on, by the nodes' cores and the head first; those with a
    GPU are where Ray finds one, unless they name their node. Those on a CPU of one node share its cores evenly, and its
    memory as well: the ones without a `memory_limit` get equal parts of what the others leave. Where no living node is
    the one that is named, there is no place.

    Args:
        actors: The cluster file's list.
        nodes: As `ray.nodes()` gives them.
    """
    alive = sorted((node for node in nodes if node["Alive"]), key=_head_first)
    chosen = _chosen_nodes(actors, alive)
    places: list[Place] = []
    counts: Counter[str] = Counter()
    for actor, node in zip(actors, chosen, strict=True):
        device = device_kind(actor.resolved_device)
        place_id = f"{device}:{counts[device]}"
        counts[device] += 1  # a node that is gone for the moment changes no other place's name
        if actor.num_gpus and not _names_node(actor):
            places.append(Place(place_id, None, actor, actor.memory_limit))
        elif node is None and _names_node(actor):
            continue
        elif actor.num_gpus:
            places.append(Place(place_id, None if node is None else node["NodeID"], actor, actor.memory_limit))
        else:
            there = [other for other, at in zip(actors, chosen, strict=True) if at is node and not other.num_gpus]
            places.append(_on_cpu(place_id, actor, node, there))
    return places


def _chosen_nodes(actors: Sequence[ActorConfig], alive: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | None]:
    """The node of each actor; None where there is none that it may be on."""
    taken: Counter[tuple[str, str]] = Counter()
    chosen: list[Mapping[str, Any] | None] = []
    for actor in actors:
        resource = "GPU" if actor.num_gpus else "CPU"
        fitting = [node for node in alive if _may_be_on(actor, node)]
        able = [node for node in fitting if node["Resources"].get(resource)] or fitting[:1]

        def load(node: Mapping[str, Any], resource: str = resource) -> float:
            return (taken[node["NodeID"], resource] + 1) / (node["Resources"].get(resource) or 1)

        node = min(able, key=load, default=None)
        if node is not None:
            taken[node["NodeID"], resource] += 1
        chosen.append(node)
    return chosen


def _names_node(actor: ActorConfig) -> bool:
    return actor.node is not None or actor.labels is not None


def _may_be_on(actor: ActorConfig, node: Mapping[str, Any]) -> bool:
    """Whether a node is one that an actor names."""
    has = node.get("Labels") or {}
    wanted = (label.split("=") for label in (actor.labels or "").split(",") if label)
    if any(has.get(name) != value for name, value in wanted):
        return False
    if actor.node is None:
        return True
    begins = len(actor.node) >= _SHORTEST_ID and node["NodeID"].startswith(actor.node)
    return begins or actor.node in (node.get("NodeManagerAddress"), node.get("NodeManagerHostname"))


def _on_cpu(place_id: str, actor: ActorConfig, node: Mapping[str, Any] | None, there: Sequence[ActorConfig]) -> Place:
    """The place of an actor on a CPU, among all of its node."""
    resources = node["Resources"] if node is not None else {}
    is_elsewhere = node is not None and HEAD not in resources and "memory" in resources
    memory = int(resources["memory"]) if is_elsewhere else memory_limit("cpu")
    cores = int(resources.get("CPU") or 1) if is_elsewhere else os.cpu_count() or 1
    given = [other.memory_limit for other in there if other.memory_limit]
    rest = (memory - sum(given)) // max(1, len(there) - len(given))
    threads = max(1, cores // len(there)) if len(there) > 1 else None
    limit = actor.memory_limit or max(1, rest)
    node_id = None if node is None else node["NodeID"]
    return Place(place_id, node_id, actor, limit, actor.cpu_threads or threads)


def _head_first(node: Mapping[str, Any]) -> tuple[bool, str]:
    return (HEAD not in node["Resources"], node["NodeID"])
