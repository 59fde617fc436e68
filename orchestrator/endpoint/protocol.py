"""What the door asks of the orchestrator behind it: `orchestrator.control.controller.Controller` has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from gpu_actor.contract.questions import Answer
from orchestrator.jobs.owner import OPERATOR


class Orchestrator(Protocol):
    """The verbs that the door does not only pass on; the others are called by name (`verbs.VERBS`)."""

    async def list_jobs(self, most_over: int | None = None, owner: str = OPERATOR) -> list[dict[str, Any]]:
        """An owner's jobs, all for the operator; of those that are over only so many, the newest."""

    async def get_job(self, ref: str, owner: str | None = None) -> dict[str, Any]:
        """One job by id or name; an owner's own come first."""

    async def cluster(self) -> dict[str, Any]:
        """The orchestrator, its actors, and the number of jobs by state."""

    async def metrics(self, ref: str, skip: int = 0) -> list[dict[str, Any]]:
        """The rows of a job's `metrics.jsonl` after the first `skip`."""

    async def timeline(self, ids: Sequence[str]) -> dict[str, Any]:
        """Where jobs were when, and how full the places were."""

    async def ask(self, request: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Let actors begin to answer a request."""

    async def answers(self, actor: str, request_id: str) -> list[Answer] | None:
        """The answers of an actor as far as they are made."""

    async def withdraw(self, actor: str, request_id: str) -> None:
        """Let an actor drop a request with its answers."""
