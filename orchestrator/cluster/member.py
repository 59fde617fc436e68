"""One actor as the orchestrator knows it, and how one is lost."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from gpu_actor.contract.report import ActorReport
from orchestrator.cluster.places import Slot


class LossKind(str, Enum):
    """How an actor was lost."""

    DIED = "died"
    SILENT = "silent"
    UNSTARTED = "unstarted"
    UNLOADABLE = "unloadable"  # its base model cannot be loaded


@dataclass(frozen=True)
class Loss:
    """An actor that is gone."""

    name: str
    slot: str
    base_model: str
    kind: LossKind
    reason: str


@dataclass
class Member:
    """One actor.

    Attributes:
        heard: When it last answered (monotonic); its start before that.
        report: Its latest answer; None before the first.
        fresh: Whether `report` came with the latest poll.
        trouble: Why the latest poll had no answer.
        sent_order: The order it was last given.
        sent_budget: The token budget it was last given; one that its memory has pressed keeps to less.
        load_seconds: What it took to load the base model, if this process has seen it.
    """

    name: str
    slot: Slot
    base_model: str
    handle: Any
    heard: float = field(default_factory=time.monotonic)
    report: ActorReport | None = None
    fresh: bool = False
    trouble: str | None = None
    sent_order: tuple[str, ...] = ()
    sent_budget: int = 0
    started: float | None = None
    load_seconds: float | None = None
    asked: asyncio.Future[ActorReport] | None = None

    @property
    def ready(self) -> bool:
        """Whether it can train."""
        return self.report is not None and self.report.state == "ready"
