"""The rows of the store as values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from orchestrator.jobs.job import JobSpec
from orchestrator.jobs.losses import Losses
from orchestrator.jobs.states import JobState


class Wish(str, Enum):
    """What is wanted of a running job that its actor has not done yet."""

    CANCEL = "cancel"  # by a person: give it up
    PAUSE = "pause"  # by a person: hold it, with a checkpoint
    YIELD = "yield"  # by the scheduler: go back into the queue, with a checkpoint
    FINISH = "finish"  # by the scheduler: export what it has learned


@dataclass(frozen=True)
class JobRecord:
    """One row of the job table.

    Attributes:
        attempt: Number of the latest assignment to an actor; raised before the actor hears of it.
        retries: Deaths of an actor that are proven to be its own: those of a job that was tried alone.
        losses: The actors that it has lost in a row.
        wish: What is wanted of it while it runs, until its actor has done it.
        queued_at: When it joined the queue for the last time.
        owner: Whose it is.
    """

    seq: int
    id: str
    name: str
    state: JobState
    spec: JobSpec
    attempt: int
    retries: int
    wish: Wish | None
    actor: str | None
    boot_id: str | None
    progress: dict[str, Any]
    reason: str | None
    waiting_for: str | None
    output_dir: str
    submitted_at: float
    queued_at: float
    started_at: float | None
    finished_at: float | None
    request_id: str
    losses: Losses
    owner: str


@dataclass(frozen=True)
class Stay:
    """A job on an actor, from its assignment to its leaving (None: it is there)."""

    job_id: str
    actor: str
    since: float
    until: float | None


@dataclass(frozen=True)
class OwnedStay:
    """A job of somebody's on an actor, from its assignment to its leaving (None: it is there)."""

    owner: str
    actor: str
    since: float
    until: float | None


@dataclass(frozen=True)
class ActorRecord:
    """An actor that was started: written before it exists, so that none can be forgotten."""

    name: str
    slot: str
    base_model: str


@dataclass(frozen=True)
class TokenRecord:
    """A token that somebody has: its SHA-256 in hexadecimal digits, never the token."""

    owner: str
    digest: str
    created_at: float
