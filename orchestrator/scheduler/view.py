"""What the scheduler sees, and what it decides: immutable values, free of Ray, torch and clocks.

Whoever builds a view gives points in time as seconds on one clock of his choice (Unix time on a cluster, simulated
time in the simulator), so that the view of a job that waits stays the same value from one look to the next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import NamedTuple

from gpu_actor.contract.config import Quantization
from gpu_actor.contract.description import BaseDescription

UNKNOWN_STEPS = 1000  # of a job whose data nobody has counted yet
MAX_CLASS = 10  # priorities beyond it weigh no more


class ActorState(str, Enum):
    """Where one actor's place stands."""

    EMPTY = "empty"  # no actor here; one can be started
    STARTING = "starting"  # its base model is not loaded yet
    READY = "ready"
    BLOCKED = "blocked"  # for the moment nothing can be started or placed here; `reason` says why


@dataclass(frozen=True)
class ActorShape:
    """What the memory need of an actor depends on, beside its base model.

    Attributes:
        token_budget: Most tokens in one shared batch; an optimizer step with more takes several.
    """

    device: str
    token_budget: int
    dtype_bytes: int = 4
    checkpointing: bool = False
    quantization: Quantization | None = None


@dataclass(frozen=True)
class SpeedModel:
    """How long a shared step of a set S of adapters takes: T(S) = a + sum over j in S of v_j.

    v_j = b * tokens_j + c + (m_j - 1) * a, where m_j is the number of shared batches for one optimizer step of j.

    Attributes:
        step_seconds: a, the fixed cost of a shared batch.
        token_seconds: b, per real token.
        adapter_seconds: c, per adapter in the batch.
    """

    step_seconds: float
    token_seconds: float
    adapter_seconds: float

    def added(self, tokens: float, token_budget: int) -> float:
        """v: the seconds that one optimizer step of `tokens` adds to a shared step."""
        batches = max(1, -int(-tokens // token_budget))
        return self.token_seconds * tokens + self.adapter_seconds + (batches - 1) * self.step_seconds


@dataclass(frozen=True)
class MemoryModel:
    """The peak bytes of an actor: fixed + its adapters' bytes + bytes_per_token * activation tokens.

    With a `token_cap` the batcher never makes a shared batch of more tokens, so the activation tokens are the cap,
    or the largest micro-batch where that alone is larger. Without one, each adapter brings its own largest micro-batch
    and they add up.

    Attributes:
        fixed_bytes: Base weights, reserve, and what else does not grow with tokens.
        bytes_per_token: Activations of one token of a shared batch.
        token_cap: Most tokens of a shared batch, enforced by the batcher; None: their sum is not limited.
    """

    fixed_bytes: float
    bytes_per_token: float
    token_cap: int | None = None


class JobRow(NamedTuple):
    """The numbers of one job, a row of the scheduler's table of jobs (`job_columns.Jobs`).

    Attributes:
        bytes: Of its adapter.
        worst: Most tokens that one of its micro-batches can have.
        tokens: Mean real tokens of one optimizer step.
        left, total: Optimizer steps still to do, and all.
        weight: Of its class.
    """

    bytes: float
    worst: float
    tokens: float
    left: float
    total: float
    priority: float
    weight: float
    submitted_at: float
    queued_at: float
    movable: bool
    leaving: bool


class JobSize(NamedTuple):
    """What a job takes of a place.

    Attributes:
        bytes: Of its adapter, as `JobView.adapter_bytes`.
        worst_tokens: As in `JobView`.
    """

    bytes: int
    worst_tokens: int


@dataclass(frozen=True)
class JobView:
    """A queued or running job.

    Attributes:
        priority: Its class; each step up doubles its weight.
        arrival: Rank by submission; smaller came earlier.
        adapter_bytes: Weights, gradients and moments of its adapter, and the tensors it keeps frozen.
        worst_tokens: Most tokens that one of its micro-batches can have.
        actor: The place where it is attached now (it may still be preparing there); None for a queued job.
        steps_left: Optimizer steps still to do, by the best guess.
        steps_total: All its optimizer steps; None: `steps_left`.
        tokens_per_step: Mean tokens of one optimizer step, what is run beside them included (`footprint.token_work`);
            None: `worst_tokens`.
        submitted_at: When it was submitted, on the clock of `ClusterView.now`.
        queued_at: When it last joined the queue.
        movable: Whether it may be taken off its actor now, with a checkpoint. False while it is preparing, while it is
            leaving, and for some time after it was last moved.
        leaving: Whether it was told to leave its actor and is still there, or lost one and rests for some seconds
            before its next try. Until it is off its bytes count; all else is planned as if it were in the queue, so
            that nobody else has to leave for the same reason, and no other base model is loaded in its place.
        returns: Whether it joins the queue when it has left; a job that was cancelled or paused does not.
        started: Whether it has ever been on an actor: it is never rejected any more.
        alone: Whether it shares no actor: it is tried alone, because actors died that it was on.
        sizes: Device of a place (`ActorShape.device`) -> what it takes there, where devices run micro-batches of
            different sizes. On others `adapter_bytes` and `worst_tokens` count.
    """

    id: str
    base_model: str
    priority: int
    arrival: int
    adapter_bytes: int
    worst_tokens: int
    actor: str | None = None
    steps_left: int = UNKNOWN_STEPS
    steps_total: int | None = None
    tokens_per_step: float | None = None
    submitted_at: float = 0.0
    queued_at: float = 0.0
    movable: bool = False
    leaving: bool = False
    returns: bool = True
    started: bool = False
    alone: bool = False
    sizes: Mapping[str, JobSize] = field(default_factory=dict)

    def size_on(self, device: str) -> JobSize:
        """What it takes of a place with such a device."""
        return self.sizes.get(device) or JobSize(self.adapter_bytes, self.worst_tokens)

    @property
    def tokens(self) -> float:
        """Mean tokens of one optimizer step, in trained tokens."""
        return self.worst_tokens if self.tokens_per_step is None else self.tokens_per_step

    @property
    def weight(self) -> float:
        """Of its class in the mean turnaround."""
        return float(2.0 ** max(-MAX_CLASS, min(MAX_CLASS, self.priority)))

    @cached_property
    def row(self) -> JobRow:
        """Its numbers; made once for a job that waits through many looks."""
        left = max(self.steps_left, 1)
        return JobRow(
            self.adapter_bytes,
            self.worst_tokens,
            self.tokens,
            left,
            max(self.steps_total or left, left),
            self.priority,
            self.weight,
            self.submitted_at,
            self.queued_at,
            self.movable,
            self.leaving,
        )


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
        speeds: Base model -> how fast this place trains on it, where that was measured.
        memories: Base model -> the memory it takes here, where that was measured. What is missing in either is
            guessed from `ClusterView.bases` (`estimate.prior_speed`, `estimate.prior_memory`).
        load_seconds: To load a base model here that `loads` does not have.
        swap_seconds: To take an adapter off an actor, or to go on with one from its checkpoint.
        loads: Base model -> seconds to load it here.
        barred: Base model -> why it is not loaded here for the time being: it could not be a short while ago.
        doubts: Base model -> relative standard error of a shared step's fixed cost here, where speeds are measured.
            Infinite: too few steps were measured. Then nobody who trains on it is taken off here, and to load it over
            the jobs of another it must be worth it at its slowest.
    """

    id: str
    name: str
    state: ActorState
    shape: ActorShape
    base_model: str | None = None
    pinned: str | None = None
    memory_limit: int | None = None
    reason: str | None = None
    speeds: Mapping[str, SpeedModel] = field(default_factory=dict)
    memories: Mapping[str, MemoryModel] = field(default_factory=dict)
    load_seconds: float = 60.0
    swap_seconds: float = 2.0
    loads: Mapping[str, float] = field(default_factory=dict)
    barred: Mapping[str, str] = field(default_factory=dict)
    doubts: Mapping[str, float] = field(default_factory=dict)

    def guessed(self, base: str) -> bool:
        """Whether the speed of a base model here is little more than a guess."""
        return math.isinf(self.doubts.get(base, 0.0))

    def seconds_to_load(self, base: str | None) -> float:
        """To load a base model here."""
        return self.loads.get(base or "", self.load_seconds)


@dataclass(frozen=True)
class ClusterView:
    """One look at the cluster.

    Attributes:
        bases: Describes every base model that a job here names, as far as actors have no models of their own for it.
        now: The time of the look, on the clock of `JobView.submitted_at`.
        makespan: What the operator wants: 0 for the shortest mean turnaround; with more, jobs that would be the last
            to end begin sooner (`policies.cosrpt`).
    """

    jobs: tuple[JobView, ...]
    actors: tuple[ActorView, ...]
    bases: Mapping[str, BaseDescription]
    now: float = 0.0
    makespan: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What to do. Every queued job is in exactly one of `placements`, `waiting` and `rejections`.

    A plan may be carried out whole or in part, and again: `placements` fit while everything that is attached now is
    still attached. Once the jobs of `preemptions` and `moves` are off, the next plan places those of `after`
    just so. No job is both placed and taken off, and jobs that are not `movable` are never taken off.

    Attributes:
        placements: Queued job -> place where it starts now.
        preemptions: Running job -> why, in words. It is taken off with a checkpoint and joins the queue.
        moves: Running job -> place where it goes on. It is taken off with a checkpoint, joins the queue, and the next
            plan places it there.
        after: Job -> place where it starts as soon as those who leave (`preemptions`, `moves`, and those who were told
            to before) are off; queued jobs that are also in `waiting`, those of `moves`, and those who leave already.
        waiting: Queued job -> why it waits, in words.
        rejections: Queued job -> why it can never run here, in words.
        rehosts: Place -> base model to host there from now on; it has no active job.
        order: Place -> its jobs, first comes first into a shared batch.
    """

    placements: Mapping[str, str] = field(default_factory=dict)
    preemptions: Mapping[str, str] = field(default_factory=dict)
    moves: Mapping[str, str] = field(default_factory=dict)
    after: Mapping[str, str] = field(default_factory=dict)
    waiting: Mapping[str, str] = field(default_factory=dict)
    rejections: Mapping[str, str] = field(default_factory=dict)
    rehosts: Mapping[str, str] = field(default_factory=dict)
    order: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
