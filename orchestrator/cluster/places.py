"""The places where actors can be: found on the cluster's nodes, or listed in the cluster file."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
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

    Those on a CPU are on the head node, or on a node with the labels that they ask for, in turn where several have
    them. They share its cores evenly, and its memory as well: the ones without a `memory_limit` get equal parts of what
    the others leave. One whose labels no living node has is left out.

    Args:
        actors: The cluster file's list.
        nodes: As `ray.nodes()` gives them.
    """
    alive = sorted((node for node in nodes if node["Alive"]), key=_head_first)
    neighbours: dict[str | None, list[ActorConfig]] = defaultdict(list)  # CPU actors, by node
    where: list[Mapping[str, Any] | None] = []  # by actor; None: not on a CPU, or nowhere
    for actor in actors:
        node = None if actor.num_gpus else _node_for(actor, alive, neighbours)
        where.append(node)
        if node is not None:
            neighbours[node["NodeID"]].append(actor)
    places: list[Place] = []
    counts: Counter[str] = Counter()
    for actor, node in zip(actors, where, strict=True):
        device = device_kind(actor.resolved_device)
        place_id = f"{device}:{counts[device]}"
        counts[device] += 1
        if actor.num_gpus:
            places.append(Place(place_id, None, actor, actor.memory_limit))
        elif node is not None:
            places.append(_cpu_place(place_id, actor, node, neighbours[node["NodeID"]]))
    return places


_NO_HEAD = {"NodeID": None, "Resources": {HEAD: 1.0}}  # it is not among the nodes; Ray says so where an actor starts


def _node_for(
    actor: ActorConfig, alive: Sequence[Mapping[str, Any]], neighbours: Mapping[str | None, list[ActorConfig]]
) -> Mapping[str, Any] | None:
    """The node of a CPU actor; None: no living node has its labels."""
    if not actor.label_selector:
        return next((node for node in alive if HEAD in node["Resources"]), _NO_HEAD)
    fitting = [node for node in alive if actor.label_selector.items() <= node.get("Labels", {}).items()]
    return min(fitting, key=lambda node: len(neighbours.get(node["NodeID"], ())), default=None)


def _cpu_place(place_id: str, actor: ActorConfig, node: Mapping[str, Any], all_there: Sequence[ActorConfig]) -> Place:
    """A place on a CPU node, with its share of what the node has; what another node has, Ray says."""
    on_head = HEAD in node["Resources"]
    total = memory_limit("cpu") if on_head else int(node["Resources"].get("memory", 0))
    cores = (os.cpu_count() or 1) if on_head else int(node["Resources"].get("CPU", 1))
    given = [other.memory_limit for other in all_there if other.memory_limit]
    rest = (total - sum(given)) // max(1, len(all_there) - len(given))
    threads = max(1, cores // len(all_there)) if len(all_there) > 1 else None
    limit = actor.memory_limit or max(1, rest)
    return Place(place_id, node["NodeID"], actor, limit, actor.cpu_threads or threads)


def _head_first(node: Mapping[str, Any]) -> tuple[bool, str]:
    return (HEAD not in node["Resources"], node["NodeID"])
