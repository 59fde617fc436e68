"""What would become of a look at the cluster: `decide` on a clock that only exists here, from now to the last end."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from orchestrator.scheduler.clock import ActorProgress, EventClock, JobProgress
from orchestrator.scheduler.policy import DEFAULT
from orchestrator.scheduler.view import ClusterView, JobView

_MOST_WORK = 500_000  # jobs looked at, over all events: some ten seconds; beyond it nothing is forecast
_MOST_TICKS = 100  # after the start; later on nobody is waited for whom no event helps


@dataclass
class Forecast:
    """What becomes of one job. Times are on the clock of the view.

    Attributes:
        needs: Bytes of the actor with this job alone, its base model included; 0 while it has no place.
        place: Where it runs first; None: nowhere.
        places: Every place that it is on, in turn.
        start: When it starts to train.
        finish: When it ends.
        company: Jobs that it shares steps with.
        rejected: Why it can never run.
        beyond: Whether the forecast was ended before this job was: too much comes before it.
    """

    job: JobView
    needs: int = 0
    places: list[str] = field(default_factory=list)
    start: float = math.inf
    finish: float = math.inf
    company: set[str] = field(default_factory=set)
    rejected: str | None = None
    beyond: bool = False

    @property
    def place(self) -> str | None:
        """Where it runs first."""
        return self.places[0] if self.places else None


def forecast(
    view: ClusterView, policy: str = DEFAULT, wanted: Collection[str] | None = None, most_work: int | None = None
) -> dict[str, Forecast]:
    """What becomes of every job of a view; jobs with a later `submitted_at` arrive then.

    Args:
        view: The cluster. Actors that are blocked are taken to stay so, and jobs that are leaving to be off.
        policy: Name of the policy.
        wanted: Jobs in question: with the last of them the forecast ends. None: all.
        most_work: Jobs looked at, over all events, beyond which nothing is forecast; None: some ten seconds' worth.
    """
    jobs = tuple(replace(job, actor=None, leaving=False) if job.leaving else job for job in view.jobs if job.returns)
    actors = tuple(replace(actor, doubts={}) for actor in view.actors)  # the guess is what there is to go by
    return _ForecastClock(
        replace(view, jobs=jobs, actors=actors), policy, wanted, _MOST_WORK if most_work is None else most_work
    ).forecasts()


class _ForecastClock(EventClock):
    tick_seconds = 30.0

    def __init__(self, view: ClusterView, policy: str, wanted: Collection[str] | None, most_work: int) -> None:
        super().__init__(view, policy)
        self._most_work = most_work
        self._forecasts = {job.id: Forecast(job) for job in view.jobs}
        self._open = set(self._jobs) if wanted is None else set(wanted)
        self._work = 0

    def forecasts(self) -> dict[str, Forecast]:
        self.play()
        for actor in self._actors.values():
            for job in actor.jobs:
                self._note_company(job, actor)
        return self._forecasts

    def _goes_on(self) -> bool:
        if not (self._open and super()._goes_on()):
            return False
        self._work += len(self._live) + 1
        if self._work <= self._most_work:
            return True
        for job_id in (*self._live, *(job.view.id for job in self._coming)):
            self._forecasts[job_id].beyond = True
        return False

    def _waits_on(self, ticks: int) -> bool:  # noqa: ARG002
        return self._now <= self._start.now + _MOST_TICKS * self.tick_seconds

    def _on_attached(self, job: JobProgress, actor: ActorProgress) -> None:
        forecast = self._forecasts[job.view.id]
        forecast.places.append(actor.view.id)
        if len(forecast.places) == 1:
            memory = self._models.memory(actor.view, job.view.base_model)
            size = job.view.size_on(actor.view.shape.device)
            tokens = max(memory.token_cap or 0, size.worst_tokens)
            bytes_alone = memory.fixed_bytes + memory.bytes_per_token * tokens + size.bytes
            forecast.needs, forecast.start = math.ceil(bytes_alone), job.ready_at

    def _on_detached(self, job: JobProgress, actor: ActorProgress) -> None:
        self._note_company(job, actor)

    def _note_company(self, job: JobProgress, actor: ActorProgress) -> None:
        """Who of those on the same actor has taken part in steps together with a job until now."""
        for other in actor.jobs:
            if other is not job and max(job.ready_at, other.ready_at) < self._now:
                self._forecasts[job.view.id].company.add(other.view.id)
                self._forecasts[other.view.id].company.add(job.view.id)

    def _on_ended(self, job: JobProgress) -> None:
        self._forecasts[job.view.id].finish = self._now
        self._open.discard(job.view.id)

    def _on_rejected(self, job: JobProgress, reason: str) -> None:
        self._forecasts[job.view.id].rejected = reason
        self._open.discard(job.view.id)
