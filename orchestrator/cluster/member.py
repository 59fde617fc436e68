"""One actor as the orchestrator sees it, what it is ordered to do, and how it is lost."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from gpu_actor.contract.messages import plain, shortened
from gpu_actor.contract.orders import Order
from gpu_actor.contract.report import ActorPhase, ActorReport
from orchestrator.cluster.places import Place

# How Ray leads up to a cause in the text of its errors; the innermost comes first.
_CAUSES = (
    re.compile(r"Worker exit detail: (.+?)(?:\s*There are some potential root causes|$)"),
    re.compile(r"The actor is dead because (.+)"),
    re.compile(r"The actor died because of an error raised in its creation task, (.+)"),
)
_NO_JOBS_DOING = re.compile(  # nor that of anything else in the process
    r"because its node has died|because its owner has died|was killed by `?ray\.kill|because GCS could not load it"
)


class LossKind(str, Enum):
    """How an actor was lost."""

    DIED = "died"  # its process, by itself: killed, out of memory, a crash
    SILENT = "silent"
    NODE = "node"  # its node is gone, or Ray was told to end it
    DEVICE = "device"  # its device is gone
    UNSTARTED = "unstarted"
    UNLOADABLE = "unloadable"  # its base model cannot be loaded


@dataclass(frozen=True)
class Loss:
    """An actor that is gone."""

    name: str
    place: str
    base_model: str
    kind: LossKind
    reason: str

    @property
    def by_itself(self) -> bool:
        """Whether its process ended by itself, so that one of its jobs may have had a part in it."""
        return self.kind in (LossKind.DIED, LossKind.SILENT)


@dataclass(frozen=True)
class Instruction:
    """An order, and the name of the actor that it is for."""

    actor: str
    order: Order


@dataclass
class Member:
    """One actor of the fleet.

    Attributes:
        answered_at: When it last answered (monotonic); its start before that.
        report: Its latest answer; None before the first.
        fresh: Whether `report` came with the latest poll.
        trouble: Why the latest poll had no answer.
        sent_order: The batch order it was last given.
        sent_budget: The token budget it was last given; one whose memory ran short keeps to less.
        started_at: When this process started it (monotonic); None: an earlier process did.
        load_seconds: What it took to load the base model, if this process has seen it.
        request: The latest call for a report, while its answer is not taken in.
    """

    name: str
    place: Place
    base_model: str
    handle: Any
    answered_at: float = field(default_factory=time.monotonic)
    report: ActorReport | None = None
    fresh: bool = False
    trouble: str | None = None
    sent_order: tuple[str, ...] = ()
    sent_budget: int = 0
    started_at: float | None = None
    load_seconds: float | None = None
    request: asyncio.Future[ActorReport] | None = None

    @property
    def ready(self) -> bool:
        """Whether it can train."""
        return self.report is not None and self.report.state is ActorPhase.READY


def is_nobodys_death(error: Exception) -> bool:
    """Whether Ray says that an actor died for a reason in which no process of its own had a part."""
    return bool(_NO_JOBS_DOING.search(plain(str(error))))


def cause_of_death(error: Exception) -> str:
    """Why Ray says that an actor died, on one line: the cause alone, which stands behind ids and in front of advice."""
    text = plain(str(error))
    for pattern in _CAUSES:
        if found := pattern.search(text):
            return shortened(found[1].rstrip(" ."))
    return shortened(text or type(error).__name__)
