"""What would become of a look at the cluster: `decide` on a clock that only exists here, from now to the last end.

The same events as in `simulator`, but for actors that differ, each with its own models of every base, as a look at a
real cluster has them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from orchestrator.scheduler.estimate import prior_memory, prior_speed
from orchestrator.scheduler.policy import DEFAULT, decide
from orchestrator.scheduler.view import ActorState, ActorView, ClusterView, JobView, MemoryModel, SpeedModel

_TICK_S = 30.0  # when nothing else happens although jobs wait: reasons ripen with time
_MOST_WORK = 500_000  # jobs looked at, over all events: some ten seconds; beyond it nothing is forecast


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


def forecast(view: ClusterView, policy: str = DEFAULT, wanted: Collection[str] | None = None) -> dict[str, Forecast]:
    """What becomes of every job of a view; jobs with a later `submitted_at` arrive then.

    Args:
        view: The cluster. Actors that are blocked are taken to stay so, and jobs that are leaving to be off.
        policy: Name of the policy.
        wanted: Jobs in question: with the last of them the forecast ends. None: all.
    """
    left = tuple(replace(job, actor=None, leaving=False) if job.leaving else job for job in view.jobs if job.returns)
    return _Clock(replace(view, jobs=left), policy, wanted).run()


def bytes_needed(view: ClusterView, actor: ActorView, job: JobView) -> int:
    """Predicted bytes of an actor with this job alone on it."""
    memory = _memory(view, actor, job.base_model)
    tokens = max(memory.token_cap or 0, job.worst_tokens)
    return math.ceil(memory.fixed_bytes + memory.bytes_per_token * tokens + job.adapter_bytes)


class _Clock:
    def __init__(self, view: ClusterView, policy: str, wanted: Collection[str] | None) -> None:
        self._view, self._policy, self._now = view, policy, view.now
        self._actors = {actor.id: actor for actor in view.actors}
        self._found = {job.id: Forecast(job) for job in view.jobs}
        self._open = {job.id for job in view.jobs} if wanted is None else set(wanted)
        self._jobs: dict[str, JobView] = {}  # that are there: queued ones with the steps that they have left
        self._on: dict[str, list[str]] = {actor.id: [] for actor in view.actors}  # who is attached where
        self._left: dict[str, float] = {job.id: float(job.steps_left) for job in view.jobs}
        self._ready: dict[str, float] = {}  # job -> when it takes part in steps
        self._loaded = {
            actor.id: view.now + actor.seconds_to_load(actor.base_model)
            for actor in view.actors
            if actor.state is ActorState.STARTING
        }
        coming = [(job.submitted_at, job.arrival, job.id) for job in view.jobs if job.submitted_at > view.now]
        self._coming = sorted(coming)
        for job in view.jobs:
            if job.submitted_at <= view.now:
                self._jobs[job.id] = job
                if job.actor is not None:
                    self._put_on(job.id, job.actor, swap=False)

    def run(self) -> dict[str, Forecast]:
        self._decide()
        work = 0
        while self._open and (self._jobs or self._coming):
            work += len(self._jobs) + 1
            if work > _MOST_WORK:
                for job_id in {*self._jobs, *(job_id for _, _, job_id in self._coming)}:
                    self._found[job_id].beyond = True
                return self._found
            ends = {job_id: when for place in self._actors for job_id, when in self._ends(place).items()}
            times = [
                *ends.values(),
                *self._loaded.values(),
                *self._waking(),
                *(when for when, _, _ in self._coming[:1]),
            ]
            following = min(times, default=self._now + _TICK_S)
            if not times and self._now > self._view.now + 100 * _TICK_S:
                return self._found  # nobody will ever start what is left
            self._advance(max(following, self._now))
            for job_id, when in ends.items():
                if when <= following:
                    self._end(job_id)
            self._arrive()
            for place in [place for place, when in self._loaded.items() if when <= self._now]:
                del self._loaded[place]
                self._actors[place] = replace(self._actors[place], state=ActorState.READY)
            self._decide()
        return self._found

    # -- events --------------------------------------------------------------------------------------------------

    def _at_work(self, place: str) -> list[JobView]:
        """The jobs that take part in the steps of an actor now."""
        return [self._jobs[job_id] for job_id in self._on[place] if self._ready[job_id] <= self._now]

    def _step_seconds(self, place: str, jobs: list[JobView]) -> float:
        actor = self._actors[place]
        speed = _speed(self._view, actor, jobs[0].base_model)
        return speed.step_seconds + sum(speed.added(job.tokens, actor.shape.token_budget) for job in jobs)

    def _ends(self, place: str) -> dict[str, float]:
        jobs = self._at_work(place)
        if not jobs:
            return {}
        step = self._step_seconds(place, jobs)
        first = min(jobs, key=lambda job: self._left[job.id])
        return {first.id: self._now + max(0.0, self._left[first.id]) * step}

    def _waking(self) -> list[float]:
        return heapq.nsmallest(1, [when for job_id, when in self._ready.items() if when > self._now])

    def _advance(self, to: float) -> None:
        for place in self._actors:
            jobs = self._at_work(place)
            if jobs:
                steps = (to - self._now) / self._step_seconds(place, jobs)
                for job in jobs:
                    self._left[job.id] -= steps
                    self._found[job.id].company |= {other.id for other in jobs if other.id != job.id}
        self._now = to

    def _arrive(self) -> None:
        while self._coming and self._coming[0][0] <= self._now:
            _, _, job_id = self._coming.pop(0)
            self._jobs[job_id] = self._found[job_id].job

    def _end(self, job_id: str) -> None:
        self._found[job_id].finish = self._now
        self._open.discard(job_id)
        self._leave(job_id)
        del self._jobs[job_id]

    def _leave(self, job_id: str) -> None:
        """A job is taken off, with the steps that it has left."""
        job = self._jobs[job_id]
        self._on[job.actor or ""].remove(job_id)
        del self._ready[job_id]
        left = max(1, math.ceil(self._left[job_id]))
        self._jobs[job_id] = replace(job, actor=None, queued_at=self._now, steps_left=left, movable=False)

    # -- decisions -----------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        if not self._jobs:
            return
        jobs = tuple(self._as_seen(job) for job in self._jobs.values())
        view = replace(self._view, jobs=jobs, actors=tuple(self._actors.values()), now=self._now)
        plan = decide(view, self._policy, words=False)
        for job_id, reason in plan.rejections.items():
            self._found[job_id].rejected = reason
            self._open.discard(job_id)
            del self._jobs[job_id]
        for job_id in (*plan.preemptions, *plan.moves):
            self._leave(job_id)
        placed: Mapping[str, str] = {**plan.placements, **plan.after}
        for job_id, place in placed.items():
            self._put_on(job_id, place)
        for place, base in plan.rehosts.items():
            self._actors[place] = replace(self._actors[place], base_model=base, state=ActorState.STARTING)
            self._loaded[place] = self._now + self._actors[place].seconds_to_load(base)

    def _as_seen(self, job: JobView) -> JobView:
        """As the scheduler sees it now. A job that waits is the same value from event to event."""
        if job.actor is None:
            return job
        left = max(1, math.ceil(self._left[job.id]))
        return replace(job, steps_left=left, movable=self._ready[job.id] <= self._now)

    def _put_on(self, job_id: str, place: str, *, swap: bool = True) -> None:
        found, actor = self._found[job_id], self._actors[place]
        self._jobs[job_id] = replace(self._jobs[job_id], actor=place)
        self._on.setdefault(place, []).append(job_id)
        self._ready[job_id] = self._now + (actor.swap_seconds if swap else 0.0)
        found.places.append(place)
        if len(found.places) == 1:
            found.needs = bytes_needed(self._view, actor, found.job)
            found.start = self._ready[job_id]


def _speed(view: ClusterView, actor: ActorView, base: str) -> SpeedModel:
    return actor.speeds.get(base) or prior_speed(view.bases[base], actor.shape)


def _memory(view: ClusterView, actor: ActorView, base: str) -> MemoryModel:
    return actor.memories.get(base) or prior_memory(view.bases[base], actor.shape)
