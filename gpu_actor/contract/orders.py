"""What the orchestrator can order an actor to do: plain values, so that they travel through Ray without torch.

Any order may come twice, and one about a job that is not on the actor changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpu_actor.contract.config import AdapterSpec
from gpu_actor.contract.questions import AskRequest


@dataclass(frozen=True)
class Attach:
    """Train an adapter, from the newest checkpoint in its output folder if there is one.

    Attributes:
        attempt: Number of this assignment; an actor that has seen it, or a later one, does nothing.
    """

    spec: AdapterSpec
    attempt: int


@dataclass(frozen=True)
class Detach:
    """Drop an adapter at the next step boundary.

    Attributes:
        keep: Write a checkpoint first, so that the job can go on elsewhere; False gives the job up.
        attempt: Number of the assignment that ends: an `Attach` of it that comes later, however late, does nothing, and
            neither does this order where a later one was seen.
    """

    job_id: str
    keep: bool
    attempt: int


@dataclass(frozen=True)
class Finish:
    """End an adapter at the next step boundary, and export what it has learned.

    Attributes:
        reason: Why it ends before its last step, for people.
    """

    job_id: str
    reason: str


@dataclass(frozen=True)
class Forget:
    """Stop reporting an adapter whose end the orchestrator has recorded.

    Attributes:
        attempt: Number of the assignment that has ended; how a later one ends is still to be reported.
    """

    job_id: str
    attempt: int


@dataclass(frozen=True)
class SetBatchOrder:
    """Which adapters come first into a shared batch: the earlier in `job_ids`, the sooner."""

    job_ids: tuple[str, ...]


@dataclass(frozen=True)
class SetTokenBudget:
    """Most tokens of a shared batch from now on."""

    tokens: int


@dataclass(frozen=True)
class Ask:
    """Answer questions between shared batches; the same request again changes nothing."""

    request: AskRequest


@dataclass(frozen=True)
class Withdraw:
    """Drop a request with its answers, made or in the making: nobody waits for them any more."""

    request_id: str


Order = Attach | Detach | Finish | Forget | SetBatchOrder | SetTokenBudget | Ask | Withdraw
