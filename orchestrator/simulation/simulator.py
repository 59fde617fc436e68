"""Discrete events around `decide`: arrivals, ends, swaps and base models that have been loaded.

Between two events nothing changes, so progress is a formula: on an actor with the set S at work a step takes
T(S) = a + sum of v_j, and each of S is one step further after it. A job that goes on from its checkpoint is idle for
`swap_seconds`, its neighbours are not. Actors start with a base model loaded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from orchestrator.scheduler.policy import decide
from orchestrator.scheduler.view import ActorShape, ActorState, ActorView, ClusterView, JobView, Plan
from orchestrator.simulation.gantt import Segment
from orchestrator.simulation.trace import Profile, TraceJob, Work, work_of

_View = TypeVar("_View", JobView, ActorView)
_TICK_S = 60.0  # when nothing else happens although jobs wait
_MOST_TICKS = 10_000


@dataclass(frozen=True)
class Outcome:
    """What became of a trace under a policy.

    Attributes:
        turnaround: Of each job, in the order of the trace; infinite for a rejected one.
        alone: Seconds of each job on an actor of its own.
        swaps: Times that a job was taken off an actor.
        oom: Jobs that were on an actor while what its jobs truly need, all their worst micro-batches at once, was
            more than it has: without a batcher that keeps to a token cap they would have run out of memory.
        decisions: Calls of `decide`.
        decision_seconds: Time in them.
        segments: Who was where when.
        memory: Actor -> (time, share of its memory) at each change.
    """

    turnaround: np.ndarray
    alone: np.ndarray
    makespan: float
    swaps: int
    oom: int
    rejected: int
    decisions: int
    decision_seconds: float
    segments: tuple[Segment, ...] = ()
    memory: dict[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)


@dataclass
class _Run:
    """One job while it is in the system."""

    number: int
    job: TraceJob
    work: Work
    view: JobView
    left: float
    guess: float  # estimated steps over true steps
    place: int = -1
    ready_at: float = 0.0
    since: float = 0.0
    started: bool = False


@dataclass
class _Actor:
    """One actor: who is attached, who is at work, and up to when that has been counted."""

    view: ActorView
    jobs: list[_Run] = field(default_factory=list)
    active: list[_Run] = field(default_factory=list)
    step: float = 0.0  # T(S)
    at: float = 0.0
    next: float = math.inf  # its next end or swapped-in job
    loaded: float = math.inf

    def advance(self, now: float) -> None:
        """Count the steps since the last time."""
        if self.active and now > self.at:
            steps = (now - self.at) / self.step
            for run in self.active:
                run.left -= steps
        self.at = now

    def refresh(self, shared: float) -> None:
        """Who is at work from now on, and when that changes next."""
        now = self.at
        self.active = [run for run in self.jobs if run.ready_at <= now]
        self.step = shared + sum(run.work.added for run in self.active)
        self.next = min((run.ready_at for run in self.jobs if run.ready_at > now), default=math.inf)
        if self.active:
            self.next = min(self.next, now + max(0.0, min(run.left for run in self.active)) * self.step)


class Simulation:
    """One trace under one policy."""

    def __init__(
        self,
        jobs: Sequence[TraceJob],
        profile: Profile,
        actors: int,
        policy: str,
        *,
        noise: float = 0.0,
        seed: int = 0,
        record: bool = False,
        makespan: float = 0.0,
        by_count: bool = False,
    ) -> None:
        """Nothing runs yet.

        Args:
            jobs: In the order of arrival.
            profile: Of every actor.
            actors: How many.
            policy: Its name.
            noise: The scheduler believes in steps times exp(N(0, noise)), and in activations (the tokens of a job's
                worst micro-batch, in effect) times another such factor, but in no micro-batch above the profile's.
                What a job takes otherwise follows from its configuration, and is known. Nothing corrects a belief.
            seed: Of the noise; steps and activations have a stream each.
            record: Whether to keep segments and memory for a chart.
            makespan: `ClusterView.makespan`.
            by_count: Hide the memory from the scheduler: it admits by the number of jobs alone, as m-LoRA as released
                does, and `Outcome.oom` shows what for.
        """
        self._profile, self._policy, self._record = profile, policy, record
        self._makespan = makespan
        streams = (np.random.default_rng(seed), np.random.default_rng([seed, 1]))
        self._guess, self._tokens_guess = (np.exp(noise * stream.normal(0.0, 1.0, len(jobs))) for stream in streams)
        self._jobs = list(jobs)
        bases = list(dict.fromkeys(job.base_model for job in jobs))
        shape = ActorShape("cuda", profile.microbatch_tokens, 2)
        names = [f"a{number:0{len(str(max(actors - 1, 0)))}d}" for number in range(actors)]
        self._actors = [
            _Actor(
                ActorView(
                    id=name,
                    name=name,
                    state=ActorState.READY,
                    shape=shape,
                    base_model=bases[number % len(bases)] if bases else None,
                    memory_limit=None if by_count else profile.memory_bytes,
                    speeds=dict.fromkeys(bases, profile.speed),
                    memories=dict.fromkeys(bases, profile.memory),
                    load_seconds=profile.base_load_seconds,
                    swap_seconds=profile.swap_seconds,
                )
            )
            for number, name in enumerate(names)
        ]
        self._place = {name: number for number, name in enumerate(names)}
        self._live: dict[str, _Run] = {}
        self._ends = np.full(len(jobs), math.inf)
        self._swaps, self._decisions, self._seconds, self._rejected = 0, 0, 0.0, 0
        self._oom: set[str] = set()
        self._segments: list[Segment] = []
        self._memory: dict[str, list[tuple[float, float]]] = {name: [] for name in names}

    def run(self) -> Outcome:
        """To the end of the last job."""
        now, arrived, ticks = 0.0, 0, 0
        while arrived < len(self._jobs) or self._live:
            coming = self._jobs[arrived].arrival_s if arrived < len(self._jobs) else math.inf
            upcoming = min(coming, min(min(actor.next, actor.loaded) for actor in self._actors))
            ticks = ticks + 1 if upcoming == math.inf else 0
            if ticks > _MOST_TICKS:
                raise RuntimeError(
                    f"{self._policy} never starts {len(self._live)} jobs, such as {next(iter(self._live))}"
                )
            now = now + _TICK_S if upcoming == math.inf else max(now, upcoming)
            changed = ticks > 0
            while arrived < len(self._jobs) and self._jobs[arrived].arrival_s <= now:
                self._arrive(arrived)
                arrived, changed = arrived + 1, True
            for actor in self._actors:
                if min(actor.next, actor.loaded) <= now:
                    changed |= self._step(actor, now)
            if changed and self._live:
                self._decide(now)
        return self._outcome()

    def _arrive(self, number: int) -> None:
        job = self._jobs[number]
        work = work_of(job, self._profile)
        guess = float(self._guess[number])
        worst = min(work.worst_tokens * float(self._tokens_guess[number]), self._profile.microbatch_tokens)
        view = JobView(
            id=job.job,
            base_model=job.base_model,
            priority=job.priority,
            arrival=number,
            adapter_bytes=job.adapter_bytes,
            worst_tokens=math.ceil(worst),
            steps_left=max(1, round(job.steps * guess)),
            steps_total=max(1, round(job.steps * guess)),
            tokens_per_step=job.tokens_per_step,
            submitted_at=job.arrival_s,
            queued_at=job.arrival_s,
        )
        self._live[job.job] = _Run(number, job, work, view, float(job.steps), guess)

    def _step(self, actor: _Actor, now: float) -> bool:
        """Ends, swapped-in jobs and a loaded base model on one actor; whether there is something to decide."""
        changed = False
        if actor.loaded <= now:
            actor.loaded = math.inf
            actor.view = _with(actor.view, state=ActorState.READY)
            changed = True
        actor.advance(now)
        # A remainder that the clock cannot resolve is none.
        small = 1e-9 + now * 1e-14 / max(actor.step, 1e-9)
        for run in [run for run in actor.active if run.left <= small]:
            self._take_off(run, now)
            del self._live[run.job.job]
            self._ends[run.number] = now
            changed = True
        actor.refresh(self._profile.step_seconds)
        return changed

    # -- deciding ------------------------------------------------------------------------------------------------

    def _decide(self, now: float) -> None:
        plan = self._ask(now)
        for name in plan.rejections:
            del self._live[name]
            self._rejected += 1
        touched: set[int] = set()
        for name in (*plan.preemptions, *plan.moves):
            run = self._live[name]
            touched.add(run.place)
            self._actors[run.place].advance(now)
            self._take_off(run, now)
            run.view = _with(run.view, actor=None, movable=False, queued_at=now, steps_left=self._believed(run))
            self._swaps += 1
        for name, place_name in {**plan.placements, **plan.after}.items():
            place = self._place[place_name]
            touched.add(place)
            self._actors[place].advance(now)
            self._put_on(self._live[name], place, now)
        for place_name, base in plan.rehosts.items():
            actor = self._actors[self._place[place_name]]
            actor.view = _with(actor.view, base_model=base, state=ActorState.STARTING)
            actor.loaded = now + self._profile.base_load_seconds
        for place in touched:
            actor = self._actors[place]
            actor.at = now
            actor.refresh(self._profile.step_seconds)
            self._account(place, now)

    def _ask(self, now: float) -> Plan:
        for actor in self._actors:
            actor.advance(now)
            for run in actor.jobs:
                run.view = _with(run.view, steps_left=self._believed(run), movable=run.ready_at <= now)
        view = ClusterView(
            jobs=tuple(run.view for run in self._live.values()),
            actors=tuple(actor.view for actor in self._actors),
            bases={},
            now=now,
            makespan=self._makespan,
        )
        started = time.process_time()
        plan = decide(view, self._policy, words=False)
        self._seconds += time.process_time() - started
        self._decisions += 1
        return plan

    @staticmethod
    def _believed(run: _Run) -> int:
        """Steps left by the scheduler's belief: its guess of the whole less what is done, at least a tenth of it."""
        if run.guess == 1.0:
            return max(1, math.ceil(run.left))
        whole = run.job.steps * run.guess
        return max(1, math.ceil(max(whole - (run.job.steps - run.left), 0.1 * whole)))

    def _take_off(self, run: _Run, now: float) -> None:
        actor = self._actors[run.place]
        actor.jobs.remove(run)
        if self._record:
            self._segments.append(Segment(run.job.job, actor.view.name, run.since, now))
            self._account(run.place, now)
        run.place = -1

    def _put_on(self, run: _Run, place: int, now: float) -> None:
        actor = self._actors[place]
        run.place, run.since = place, now
        run.ready_at = now + self._profile.swap_seconds if run.started else now
        run.started = True
        run.view = _with(run.view, actor=actor.view.id, movable=run.ready_at <= now)
        actor.jobs.append(run)
        if self._used(actor) > self._profile.memory_bytes * (1 + 1e-9):
            self._oom.update(there.job.job for there in actor.jobs)

    def _used(self, actor: _Actor) -> float:
        fixed = self._profile.base_bytes + self._profile.reserve_bytes
        return fixed + sum(run.work.bytes for run in actor.jobs)

    def _account(self, place: int, now: float) -> None:
        if self._record:
            actor = self._actors[place]
            self._memory[actor.view.name].append((now, self._used(actor) / self._profile.memory_bytes))

    def _outcome(self) -> Outcome:
        arrival = np.array([job.arrival_s for job in self._jobs])
        ended = np.isfinite(self._ends)
        return Outcome(
            turnaround=self._ends - arrival,
            alone=np.array([work_of(job, self._profile).alone for job in self._jobs]),
            makespan=float(self._ends[ended].max(initial=0.0) - arrival.min(initial=0.0)) if len(arrival) else 0.0,
            swaps=self._swaps,
            oom=len(self._oom),
            rejected=self._rejected,
            decisions=self._decisions,
            decision_seconds=self._seconds,
            segments=tuple(self._segments),
            memory={name: tuple(points) for name, points in self._memory.items()},
        )


def _with(view: _View, **changes: Any) -> _View:
    """`dataclasses.replace`, several times as fast; for the views of jobs and actors only."""
    other = object.__new__(type(view))
    other.__dict__.update(view.__dict__)
    other.__dict__.update(changes)
    other.__dict__.pop("row", None)
    return other
