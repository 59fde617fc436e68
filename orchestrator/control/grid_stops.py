"""Which jobs of halved grids stop now: reads the losses at the rungs from `metrics.jsonl`, each once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.jobs.output_folder import read_metrics
from orchestrator.jobs.states import TERMINAL, JobState
from orchestrator.scheduler.halving import Member, loss_at, rungs, stops
from orchestrator.store.records import JobRecord, Wish

if TYPE_CHECKING:
    from orchestrator.store.store import Store


class GridStops:
    """Watches the grids that are halved."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._losses: dict[tuple[str, float | None, int], float] = {}  # job, its first start and rung -> loss there
        self._judged: object = None  # where the jobs stood when their grids were last judged

    def due(self, live: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """Running jobs that stop now, and why.

        Grids are judged only when one of their jobs has come past a rung, or is in another state: one that ended
        decides about the others, and one that could not stop because of a wish may be free to stop now.

        Args:
            live: Progress by job.
        """
        requests = {job.request_id for job in self._store.jobs([JobState.RUNNING]) if _is_halved(job)}
        jobs = [job for job in self._store.jobs(requests=requests) if _is_halved(job)] if requests else []
        standings = [(job.id, job.state, job.wish, max(_passed(job, live), default=0)) for job in jobs]
        if standings == self._judged:
            return {}
        self._judged = standings
        groups: dict[tuple[str, str | None], list[JobRecord]] = defaultdict(list)
        for job in jobs:
            groups[job.request_id, job.spec.early_stop.group].append(job)
        reasons: dict[str, str] = {}
        for group in groups.values():
            reasons |= self._stops(group, live)
        free = [job for job in jobs if job.state is JobState.RUNNING and job.wish is None]
        return {job.id: reasons[job.id] for job in free if job.id in reasons}

    def _stops(self, jobs: Sequence[JobRecord], live: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        rules = jobs[0].spec.early_stop
        members = [
            Member(
                id=job.id,
                name=job.name,
                total_steps=int(_progress(job, live).get("total_steps", 0)),
                alive=job.state not in TERMINAL and job.wish is not Wish.FINISH,
                losses={rung: loss for rung in _passed(job, live) if (loss := self._loss(job, rung)) is not None},
            )
            for job in jobs
        ]
        return stops(members, rules.halving_steps or 1, rules.halving_keep)

    def _loss(self, job: JobRecord, rung: int) -> float | None:
        """By the rows that it has written; each rung is looked up once."""
        key = job.id, job.started_at, rung  # a retry from the start may have other losses
        if key not in self._losses:
            loss = loss_at(rung, read_metrics(job.output_dir))
            if loss is None:
                return None
            self._losses[key] = loss
        return self._losses[key]


def _is_halved(job: JobRecord) -> bool:
    return bool(job.spec.early_stop.halving_steps and job.spec.early_stop.group)


def _progress(job: JobRecord, live: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    return live.get(job.id, job.progress)


def _passed(job: JobRecord, live: Mapping[str, Mapping[str, Any]]) -> list[int]:
    """The rungs that a job has passed."""
    progress = _progress(job, live)
    step = progress.get("step", 0)
    return [
        rung for rung in rungs(job.spec.early_stop.halving_steps or 1, progress.get("total_steps", 0)) if rung <= step
    ]
