"""What an actor tells the orchestrator: plain data, so that it travels through Ray without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class ActorPhase(str, Enum):
    """Where an actor stands."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"  # its base model cannot be served; `ActorReport.reason` says why
    CRASHED = "crashed"  # a kernel failed, after which nothing runs on the device in this process
    DEVICE_GONE = "device gone"  # the device failed by itself


class TenantState(str, Enum):
    """Where one adapter stands on its actor."""

    PREPARING = "preparing"  # data and start weights are being loaded
    TRAINING = "training"
    SUCCEEDED = "succeeded"  # the adapter is whole in its output folder
    FAILED = "failed"  # `reason` says why
    DETACHED = "detached"  # paused or moved away: a checkpoint of this very step is on disk
    CANCELLED = "cancelled"  # given up on request


@dataclass(frozen=True)
class TenantReport:
    """Progress of one adapter. Counters are totals since the job's first step, restarts included."""

    job_id: str
    attempt: int
    state: TenantState
    step: int = 0
    total_steps: int = 0  # 0 until the data are loaded
    epoch: float = 0.0
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    tokens: int = 0  # real tokens trained on
    tokens_per_s: float = 0.0  # of this adapter, over the last seconds
    eta_s: float | None = None
    samples: int = 0  # training samples in use
    longest: int = 0  # tokens of the longest of them
    tokens_per_step: float = 0.0  # mean real tokens of an optimizer step
    truncated: int = 0  # samples cut at cutoff_len
    dropped: int = 0  # samples without any token to learn after the cut
    unread_columns: str = ""  # of the data file, in words of bounded length
    shortened: int = 0  # conversations of which the chat template left out a part of an answer
    unreached: str = ""  # adapted layers that had no gradient in the first optimizer step, in words
    unsaved: str = ""  # why nothing could be saved of late, and whether the job waits for that, in words
    notes: tuple[str, ...] = ()  # what has happened to its files on this actor, for its events
    reason: str | None = None  # of FAILED: what went wrong and what to do; of SUCCEEDED: why it stopped early


@dataclass(frozen=True)
class StepSample:
    """What one shared step took, after the warm-up of every adapter in it."""

    tokens: int
    squares: int  # sum of the squared sequence lengths: what attention costs
    adapters: int  # in the step
    seconds: float  # forward, backward and optimizer; evaluations and files left out
    peak_bytes: int  # highest use of the device during the step
    adapter_bytes: int  # weights, gradients and moments of all adapters on the device
    ahead: int = 0  # further tokens that were only run forward: references, and the KL of kto


@dataclass(frozen=True)
class ActorReport:
    """State of one actor and of every adapter on it."""

    name: str
    boot_id: str
    state: ActorPhase
    reason: str | None = None  # of FAILED, or a remark (a base that cannot be packed)
    base_model: str = ""
    device: str = ""
    device_name: str = ""  # what an accelerator calls itself
    memory_limit: int = 0  # bytes the actor may use; 0 as long as it does not know
    memory_used: int = 0  # bytes in use now (resident set on CPU, allocated on CUDA)
    memory_reserved: int = 0  # bytes taken from the device, in use or not
    memory_free: int = 0  # bytes that can still be taken
    memory_peak: int = 0  # highest use so far
    memory_idle: int = 0  # bytes in use when the base model was loaded and no adapter was there
    token_budget: int = 0  # most tokens of a shared batch now
    micro_batch_cap: int = 0  # most tokens of a micro-batch (a single larger sample excepted)
    memory_shortages: int = 0  # times that the memory limit was passed, or memory ran out, and batches became smaller
    steps: tuple[StepSample, ...] = ()  # shared steps since the last report
    base_bytes: int = 0  # the base model's weights
    step_seconds: float = 0.0  # mean duration of the latest shared steps
    tokens_per_s: float = 0.0  # real tokens of all adapters together, over the last seconds
    batch_tokens: int = 0  # tokens in the latest shared batch
    batch_adapters: int = 0  # adapters in the latest shared batch
    trained_tokens: int = 0  # real tokens since the actor started
    padding_avoided: int = 0  # tokens of padding that the same micro-batches would have had as rectangles
    generated_tokens: int = 0  # of answers, since the actor started
    open_requests: int = 0  # whose answers are being made, or have not been fetched and withdrawn
    tenants: tuple[TenantReport, ...] = field(default_factory=tuple)
