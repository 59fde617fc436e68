"""What the scheduler sees, and what it decides: immutable values, free of Ray, torch and clocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from gpu_actor.footprint import BaseDescription


class ActorState(str, Enum):
    """Where one actor's place stands."""

    EMPTY = "empty"  # no actor here; one can be started
    STARTING = "starting"  # its base model is not loaded yet
    READY = "ready"
    BLOCKED = "blocked"  # for the moment nothing can be started or placed here; `reason` says why


@dataclass(frozen=True)
class ActorShape:
    """What the memory need of an actor depends on, beside its base model."""

    device: str
    token_budget: int
    dtype_bytes: int = 4
    checkpointing: bool = False


@dataclass(frozen=True)
class JobView:
    """A queued or running job.

    Attributes:
        arrival: Rank by submission; smaller came earlier.
        adapter_bytes: Weights, gradients and moments of its adapter.
        worst_tokens: Most tokens that one of its micro-batches can have.
        waited_s: Seconds since it joined the queue.
        actor: Where it runs; None for a queued job.
    """

    id: str
    base_model: str
    priority: int
    arrival: int
    adapter_bytes: int
    worst_tokens: int
    waited_s: float = 0.0
    actor: str | None = None


@dataclass(frozen=True)
class ActorView:
    """A place for one actor.

    Attributes:
        id: The place; stays when the actor is replaced.
        name: How to call it in words.
        base_model: What it hosts or is loading; None when empty.
        pinned: The only base model that it may host, by the cluster file.
        memory_limit: Bytes the actor may use; None as long as nobody knows.
        reason: Why it is blocked.
    """

    id: str
    name: str
    state: ActorState
    shape: ActorShape
    base_model: str | None = None
    pinned: str | None = None
    memory_limit: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ClusterView:
    """One look at the cluster. `bases` describes every base model that a job here or an actor here names."""

    jobs: tuple[JobView, ...]
    actors: tuple[ActorView, ...]
    bases: Mapping[str, BaseDescription]


@dataclass(frozen=True)
class Plan:
    """What to do. Every queued job is in exactly one of `placements`, `waiting` and `rejections`.

    Attributes:
        placements: Queued job -> place where it starts now.
        waiting: Queued job -> why it waits, in words.
        rejections: Queued job -> why it can never run here, in words.
        rehosts: Place -> base model to host there from now on; it has no active job.
        order: Place -> its jobs, first comes first into a shared batch.
    """

    placements: Mapping[str, str] = field(default_factory=dict)
    waiting: Mapping[str, str] = field(default_factory=dict)
    rejections: Mapping[str, str] = field(default_factory=dict)
    rehosts: Mapping[str, str] = field(default_factory=dict)
    order: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
