"""A cluster that exists only on paper: its events one after another, with the scheduler's decisions in between.

Events are arrivals, jobs that have been swapped in, base models that have been loaded, ends, and a tick when nothing
else happens. Between two of them nothing changes, so progress is a formula: on an actor where the jobs S take part in
steps, a step takes T(S) = a + sum of v_j, and brings each of S one step further. A job that is still being swapped in
waits, its neighbours do not.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

from orchestrator.scheduler.job_columns import Models
from orchestrator.scheduler.policy import decide
from orchestrator.scheduler.view import ActorState, ActorView, ClusterView, JobView, Plan

_View = TypeVar("_View", JobView, ActorView)


@dataclass(eq=False)
class JobProgress:
    """How far a job has come.

    Attributes:
        view: As the scheduler saw it last.
        steps_left: Optimizer steps still to do, fractions of the current one included.
        ready_at: When it takes part in the steps of its actor, or did.
        added: v, the seconds that it adds to a step there.
        started: Whether it has ever been on an actor.
        told_at: Steps left at which `_on_reached` hears of it; 0: never, it goes on to its end.
    """

    view: JobView
    steps_left: float
    ready_at: float = 0.0
    added: float = 0.0
    started: bool = False
    told_at: float = 0.0


@dataclass(eq=False)
class ActorProgress:
    """An actor with its jobs, and up to when their steps have been counted.

    Attributes:
        jobs: All that are attached.
        active: Those of them that take part in steps.
        fixed_seconds: a, with the base model of its jobs.
        step_seconds: T(S) of the active jobs.
        counted_to: Up to when steps have been counted.
        next_change: Its next end or swapped-in job.
        loaded_at: When its base model will have been loaded.
    """

    view: ActorView
    counted_to: float
    loaded_at: float = math.inf
    jobs: list[JobProgress] = field(default_factory=list)
    active: list[JobProgress] = field(default_factory=list)
    fixed_seconds: float = 0.0
    step_seconds: float = 0.0
    next_change: float = math.inf

    def advance(self, now: float) -> None:
        """Count the steps since the last time."""
        if self.active and now > self.counted_to:
            steps = (now - self.counted_to) / self.step_seconds
            for job in self.active:
                job.steps_left -= steps
        self.counted_to = now

    def refresh(self) -> None:
        """Find out who takes part in steps from now on, and when that changes next."""
        now = self.counted_to
        self.active = [job for job in self.jobs if job.ready_at <= now]
        self.step_seconds = self.fixed_seconds + sum(job.added for job in self.active)
        self.next_change = min((job.ready_at for job in self.jobs if job.ready_at > now), default=math.inf)
        if self.active:
            first = max(0.0, min(job.steps_left - job.told_at for job in self.active)) * self.step_seconds
            self.next_change = min(self.next_change, now + first)


class EventClock:
    """Plays one cluster under one policy. A subclass says what to make of it, in the methods `_on_...` and others.

    Attributes:
        tick_seconds: From one decision to the next when jobs wait and nothing else happens: reasons ripen with time.
        first_start_is_free: Whether only a job that goes on from its checkpoint takes the time of a swap.
        decides_on_swap_in: Whether a job that has been swapped in, and may be moved from then on, asks for a decision.
    """

    tick_seconds: ClassVar[float]
    first_start_is_free: ClassVar[bool] = False
    decides_on_swap_in: ClassVar[bool] = True

    def __init__(self, view: ClusterView, policy: str) -> None:
        """Nothing happens yet.

        Args:
            view: The cluster at the start. Jobs with a later `submitted_at` arrive then.
            policy: Name of the policy.
        """
        self._start, self._policy, self._now = view, policy, view.now
        self._models = Models(view)
        self._jobs = {job.id: JobProgress(job, float(job.steps_left)) for job in view.jobs}
        self._live: dict[str, JobProgress] = {}  # that have arrived, and neither ended nor been rejected
        order = sorted(view.jobs, key=lambda job: (job.submitted_at, job.arrival, job.id))
        self._coming = deque(self._jobs[job.id] for job in order)
        self._actors = {actor.id: ActorProgress(actor, view.now) for actor in view.actors}
        for actor in self._actors.values():
            if actor.view.state is ActorState.STARTING:
                actor.loaded_at = view.now + actor.view.seconds_to_load(actor.view.base_model)

    def play(self) -> None:
        """From the start to the last end, or until the subclass has seen enough."""
        self._arrive()
        for actor in self._actors.values():
            actor.refresh()
        self._decide()
        ticks = 0
        while self._goes_on():
            due = min((min(actor.next_change, actor.loaded_at) for actor in self._actors.values()), default=math.inf)
            if self._coming:
                due = min(due, self._coming[0].view.submitted_at)
            ticks = ticks + 1 if due == math.inf else 0
            if ticks and not self._waits_on(ticks):
                return
            self._now = self._now + self.tick_seconds if ticks else max(self._now, due)
            changed = self._arrive() or ticks > 0
            for actor in self._actors.values():
                if min(actor.next_change, actor.loaded_at) <= self._now:
                    changed |= self._step(actor)
            if changed:
                self._decide()

    # -- what a subclass may want to know or to say ------------------------------------------------------------------

    def _goes_on(self) -> bool:
        """Whether there is anything left to play."""
        return bool(self._live or self._coming)

    def _waits_on(self, ticks: int) -> bool:
        """Whether to play another tick, the last of so many in a row, although only the time passes."""
        raise NotImplementedError

    def _believed_steps(self, job: JobProgress) -> int:
        """Steps that the scheduler believes a job has left."""
        return max(1, math.ceil(job.steps_left))

    def _ask(self, view: ClusterView) -> Plan:
        """The scheduler's decision."""
        return decide(view, self._policy, explain=False)

    def _on_attached(self, job: JobProgress, actor: ActorProgress) -> None:
        """A job has just come onto an actor, and takes part in its steps from `ready_at` on."""

    def _on_detached(self, job: JobProgress, actor: ActorProgress) -> None:
        """A job has just left an actor, at its end or before."""

    def _on_ended(self, job: JobProgress) -> None:
        """A job has done all its steps, or was ended before."""

    def _on_reached(self, job: JobProgress) -> None:
        """A job has `told_at` steps left, which must be fewer from now on; here jobs may be ended."""

    def _on_rejected(self, job: JobProgress, reason: str) -> None:
        """A job can never run."""

    def _on_decided(self, changed: Iterable[ActorProgress]) -> None:
        """A decision has been carried out; these actors have got or lost jobs by it."""

    # -- events ------------------------------------------------------------------------------------------------------

    def _arrive(self) -> bool:
        """Take in who is due; returns whether there was anybody."""
        before = len(self._coming)
        while self._coming and self._coming[0].view.submitted_at <= self._now:
            job = self._coming.popleft()
            self._live[job.view.id] = job
            if job.view.actor is not None:
                self._attach(job, self._actors[job.view.actor], self._now)
        return len(self._coming) < before

    def _step(self, actor: ActorProgress) -> bool:
        """Ends, swapped-in jobs and a loaded base model on one actor; whether that asks for a decision."""
        changed = self.decides_on_swap_in
        if actor.loaded_at <= self._now:
            actor.loaded_at = math.inf
            actor.view = _with(actor.view, state=ActorState.READY)
            changed = True
        actor.advance(self._now)
        # A remainder that the clock cannot resolve is none.
        unresolved = 1e-9 + self._now * 1e-14 / max(actor.step_seconds, 1e-9)
        before = len(self._live)
        for job in [job for job in actor.active if job.steps_left - job.told_at <= unresolved]:
            if job.steps_left <= unresolved:
                self._end(job)
            elif job.view.id in self._live:
                self._on_reached(job)
        actor.refresh()
        return changed or len(self._live) < before

    def _end(self, job: JobProgress) -> None:
        """A job that is on an actor leaves it for good."""
        actor = self._actors[job.view.actor or ""]
        actor.advance(self._now)
        self._detach(job, actor)
        del self._live[job.view.id]
        actor.refresh()
        self._on_ended(job)

    def _attach(self, job: JobProgress, actor: ActorProgress, ready_at: float) -> None:
        speed = self._models.speed(actor.view, job.view.base_model)
        actor.fixed_seconds = speed.step_seconds
        job.added = speed.added(job.view.tokens, actor.view.shape.token_budget)
        job.ready_at, job.started = ready_at, True
        job.view = _with(job.view, actor=actor.view.id)
        actor.jobs.append(job)
        self._on_attached(job, actor)

    def _detach(self, job: JobProgress, actor: ActorProgress) -> None:
        actor.jobs.remove(job)
        self._on_detached(job, actor)

    # -- decisions ---------------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Ask the scheduler what to do now, and do it.

        A place that a plan has emptied for another base model changes by the next plan. So that one is asked for at
        once, as a cluster does when the last job is off.
        """
        while self._live and self._decide_once():
            pass

    def _decide_once(self) -> bool:
        """The same once; returns whether an actor has been emptied."""
        plan = self._ask(self._current_view())
        for job_id, reason in plan.rejections.items():
            self._on_rejected(self._live.pop(job_id), reason)
        changed: dict[str, ActorProgress] = {}
        for job_id in (*plan.preemptions, *plan.moves):
            job = self._live[job_id]
            actor = self._actors[job.view.actor or ""]
            changed[actor.view.id] = actor
            self._detach(job, actor)
            left = self._believed_steps(job)
            job.view = _with(job.view, actor=None, movable=False, queued_at=self._now, steps_left=left)
        vacated = list(changed.values())
        for job_id, place in {**plan.placements, **plan.after}.items():
            job, actor = self._live[job_id], self._actors[place]
            changed[place] = actor
            swap = 0.0 if self.first_start_is_free and not job.started else actor.view.swap_seconds
            self._attach(job, actor, self._now + swap)
        for place, base in plan.rehosts.items():
            actor = self._actors[place]
            actor.view = _with(actor.view, base_model=base, state=ActorState.STARTING)
            actor.loaded_at = self._now + actor.view.seconds_to_load(base)
        for actor in changed.values():
            actor.refresh()
        self._on_decided(changed.values())
        return any(not actor.jobs for actor in vacated)

    def _current_view(self) -> ClusterView:
        """The cluster as the scheduler sees it now. A job that waits is the same value from event to event."""
        for actor in self._actors.values():
            actor.advance(self._now)
            for job in actor.jobs:
                left = self._believed_steps(job)
                job.view = _with(job.view, steps_left=left, movable=job.ready_at <= self._now)
        return replace(
            self._start,
            jobs=tuple(job.view for job in self._live.values()),
            actors=tuple(actor.view for actor in self._actors.values()),
            now=self._now,
        )


def _with(view: _View, **changes: Any) -> _View:
    """`dataclasses.replace`, several times as fast; for the views of jobs and actors only."""
    other = object.__new__(type(view))
    other.__dict__.update(view.__dict__)
    other.__dict__.update(changes)
    other.__dict__.pop("row", None)
    return other
