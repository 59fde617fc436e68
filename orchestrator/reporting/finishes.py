"""When jobs will be over: forecast when somebody asks, beside the event loop, and kept for a while."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from gpu_actor.contract.messages import one_line
from orchestrator.scheduler.outlook import Outlook, of_the_queue, outlooks
from orchestrator.scheduler.view import ClusterView

logger = logging.getLogger("loray.finishes")

_GOOD_SECONDS = 2.0  # that a forecast is given out at least
_PAUSE = 100.0  # times what it took that a dearer one is: so it takes a hundredth of a core, while somebody looks
_PATIENCE_SECONDS = 1.0  # that an answer waits for one that is being made


class Finishes:
    """The latest forecast of a cluster. Every method runs in the orchestrator's event loop."""

    def __init__(self, look: Callable[[], ClusterView], policy: str) -> None:
        """Nothing is forecast yet.

        Args:
            look: Takes a look at the cluster.
            policy: Name of the scheduler's policy.
        """
        self._look, self._policy = look, policy
        self._latest: Mapping[str, Outlook] = {}
        self._made_at, self._good_for = 0.0, 0.0  # monotonic
        self._making: asyncio.Task[None] | None = None

    async def refresh(self) -> None:
        """Have a new forecast made if the latest is old, and wait a little for it."""
        if self._making is None or self._making.done():
            if time.monotonic() - self._made_at < self._good_for:
                return
            self._making = asyncio.get_running_loop().create_task(self._make())
        await asyncio.wait({self._making}, timeout=_PATIENCE_SECONDS)

    async def _make(self) -> None:
        try:
            self._latest, seconds = await asyncio.to_thread(_timed, self._look(), self._policy)
            self._good_for = max(_GOOD_SECONDS, _PAUSE * seconds)
        except Exception as error:  # whatever happens to a forecast happens to nothing else
            logger.warning("no forecast was made: %s", one_line(error))
            self._latest, self._good_for = {}, _GOOD_SECONDS
        self._made_at = time.monotonic()

    def of(self, job_id: str) -> dict[str, Any] | None:
        """When a job will be over, in seconds from now; None if that is not known, or should have been by now.

        Returns:
            `start_s`, `finish_s`, `earliest_s`, `latest_s` and `guess`, as of `Outlook`.
        """
        found = self._latest.get(job_id)
        return None if found is None else _from_now(found)

    def of_queue(self, job_ids: Collection[str]) -> dict[str, Any] | None:
        """When the last of some jobs will be over, likewise; `unknown` counts those of which it is not known."""
        known = {job_id: self._latest[job_id] for job_id in job_ids if job_id in self._latest}
        whole = of_the_queue(known)
        times = None if whole is None else _from_now(whole)
        return None if times is None else {**times, "unknown": len(job_ids) - len(known)}


def _timed(view: ClusterView, policy: str) -> tuple[Mapping[str, Outlook], float]:
    started = time.thread_time()
    return outlooks(view, policy), time.thread_time() - started


def _from_now(found: Outlook) -> dict[str, Any] | None:
    now = time.time()
    if found.finish <= now:
        return None
    names = {"start_s": found.start, "finish_s": found.finish, "earliest_s": found.earliest, "latest_s": found.latest}
    return {**{name: max(0.0, moment - now) for name, moment in names.items()}, "guess": found.guess}
