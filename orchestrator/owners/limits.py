"""Whose jobs wait for their owners' quotas, and whose weigh more for their shares."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.cluster.cluster_config import QUOTA_DAYS, ClusterConfig
from orchestrator.jobs.states import JobState
from orchestrator.owners.device_time import device_seconds
from orchestrator.owners.fair_share import fair_steps
from orchestrator.store.records import JobRecord

if TYPE_CHECKING:
    from orchestrator.store.store import Store

_COUNT_EVERY_S = 60.0


class OwnerLimits:
    """The quotas and shares of the cluster file, against what the owners' jobs do."""

    def __init__(self, config: ClusterConfig, store: Store) -> None:
        self._config, self._store = config, store
        self._counts_time = any(quota.device_hours is not None for quota in config.quotas.values())
        self._hours: Mapping[str, float] = {}
        self._counted_at = -_COUNT_EVERY_S

    async def refresh(self) -> None:
        """Count the hours of devices anew, once a minute, in a thread."""
        if self._counts_time and time.monotonic() - self._counted_at >= _COUNT_EVERY_S:
            self._hours = await asyncio.to_thread(self._count)
            self._counted_at = time.monotonic()

    def held(self, records: Sequence[JobRecord]) -> dict[str, str]:
        """Queued jobs whose owners have no more running, or no more hours of devices, for them; and why."""
        return self._beyond_running(records) | self._beyond_hours(records)

    def steps(self, records: Sequence[JobRecord]) -> Mapping[str, int]:
        """Owner -> steps of priority for their jobs, where the cluster file gives anybody a share; else none."""
        if all(quota.share is None for quota in self._config.quotas.values()):
            return {}
        return fair_steps((job.owner for job in records), lambda owner: self._config.quota_of(owner).share or 1.0)

    def _beyond_running(self, records: Sequence[JobRecord]) -> dict[str, str]:
        """Those first in line are counted in."""
        most = {owner: self._config.quota_of(owner).running for owner in {job.owner for job in records}}
        limited = [job for job in records if most[job.owner] is not None]
        left, beyond = dict(most), {}
        for job in sorted(limited, key=lambda job: (job.state is JobState.QUEUED, -job.spec.queue.priority, job.seq)):
            rest = left[job.owner] = (left[job.owner] or 0) - 1
            if rest < 0 and job.state is JobState.QUEUED:
                why = f"the end of another job of {job.owner}'s, who may have {most[job.owner]} running"
                beyond[job.id] = why
        return beyond

    def _beyond_hours(self, records: Sequence[JobRecord]) -> dict[str, str]:
        beyond = {}
        for job in records if self._counts_time else ():
            most, hours = self._config.quota_of(job.owner).device_hours, self._hours.get(job.owner, 0.0)
            if most is not None and hours >= most and job.state is JobState.QUEUED:
                beyond[job.id] = (
                    f"device hours: {job.owner}'s jobs took {hours:.1f} in the latest {QUOTA_DAYS} days, the quota is "
                    f"{most:g}"
                )
        return beyond

    def _count(self) -> dict[str, float]:
        now = time.time()
        since = now - QUOTA_DAYS * 86_400
        seconds = device_seconds(self._store.owned_stays(since), since, now)
        return {owner: total / 3600 for owner, total in seconds.items()}
