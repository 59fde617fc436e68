"""The places where actors can be: found on the cluster's nodes, or listed in the cluster file."""

from __future__ import annotations

import os
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

    Those on a CPU are on the head node. They share its cores evenly, and its memory as well: the ones without a
    `memory_limit` get equal parts of what the others leave.

    Args:
        actors: The cluster file's list.
        nodes: As `ray.nodes()` gives them.
    """
    head = next((node["NodeID"] for node in nodes if node["Alive"] and HEAD in node["Resources"]), None)
    on_cpu = sum(not actor.num_gpus for actor in actors)
    given = [actor.memory_limit for actor in actors if not actor.num_gpus and actor.memory_limit]
    rest = (memory_limit("cpu") - sum(given)) // max(1, on_cpu - len(given)) if on_cpu else 0
    threads = max(1, (os.cpu_count() or 1) // on_cpu) if on_cpu > 1 else None
    places: list[Place] = []
    for actor in actors:
        device = device_kind(actor.resolved_device)
        place_id = f"{device}:{sum(device_kind(place.device) == device for place in places)}"
        if actor.num_gpus:
            places.append(Place(place_id, None, actor, actor.memory_limit))
        else:
            limit = actor.memory_limit or max(1, rest)
            places.append(Place(place_id, head, actor, limit, actor.cpu_threads or threads))
    return places


def _head_first(node: Mapping[str, Any]) -> tuple[bool, str]:
    return (HEAD not in node["Resources"], node["NodeID"])
