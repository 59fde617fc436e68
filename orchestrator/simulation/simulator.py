"""A recorded workload on some actors, under one policy.

The scheduler may err about sizes and memory, what it decides is timed, and who was where can be kept for a chart.
Actors start with a base model loaded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from orchestrator.scheduler.clock import ActorProgress, EventClock, JobProgress
from orchestrator.scheduler.view import ActorShape, ActorState, ActorView, ClusterView, JobSize, JobView, Plan
from orchestrator.simulation.gantt import Segment
from orchestrator.simulation.trace import Profile, TraceJob, Work, work_of

_MOST_TICKS = 10_000


@dataclass(frozen=True)
class Outcome:
    """What became of a trace under a policy.

    Attributes:
        turnaround: Of each job, in the order of the trace; infinite for a rejected one.
        alone: Seconds of each job on an actor of its own, the fastest one.
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
class _Traced:
    """A job of the trace, and what only the simulation knows of it; its work by the name of a device."""

    number: int
    job: TraceJob
    work: Mapping[str, Work]
    guess: float  # estimated steps over true steps
    attached_at: float = 0.0


class Simulation(EventClock):
    """One trace under one policy."""

    tick_seconds = 60.0
    first_start_is_free = True
    decides_on_swap_in = False

    def __init__(
        self,
        jobs: Sequence[TraceJob],
        devices: Sequence[Profile],
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
            devices: One for each actor; those that differ have names that differ.
            policy: Its name.
            noise: The scheduler believes in steps times exp(N(0, noise)), and in activations (the tokens of a job's
                worst micro-batch, in effect) times another such factor, but in no micro-batch above the device's.
                What a job takes otherwise follows from its configuration, and is known. Nothing corrects a belief.
            seed: Of the noise; steps and activations have a stream each.
            record: Whether to keep segments and memory for a chart.
            makespan: `ClusterView.makespan`.
            by_count: Hide the memory from the scheduler: it admits by the number of jobs alone, as m-LoRA as released
                does, and `Outcome.oom` shows what for.
        """
        kinds = list(dict.fromkeys(devices))
        if len({kind.name for kind in kinds}) < len(kinds):
            raise ValueError(f"devices that differ have the same name: {', '.join(kind.name for kind in kinds)}")
        streams = (np.random.default_rng(seed), np.random.default_rng([seed, 1]))
        guesses, tokens_guesses = (np.exp(noise * stream.normal(0.0, 1.0, len(jobs))) for stream in streams)
        views = tuple(
            _job_view(number, job, kinds, float(guess), float(tokens_guess))
            for number, (job, guess, tokens_guess) in enumerate(zip(jobs, guesses, tokens_guesses, strict=True))
        )
        bases = list(dict.fromkeys(job.base_model for job in jobs))
        places = _actor_views(devices, bases, by_count=by_count)
        super().__init__(ClusterView(views, places, bases={}, makespan=makespan), policy)
        self._devices = {place.id: device for place, device in zip(places, devices, strict=True)}
        self._record, self._noise = record, noise
        self._traced = {
            job.job: _Traced(number, job, {kind.name: work_of(job, kind) for kind in kinds}, float(guess))
            for number, (job, guess) in enumerate(zip(jobs, guesses, strict=True))
        }
        for name, traced in self._traced.items():
            self._jobs[name].steps_left = float(traced.job.steps)
        self._ends = np.full(len(jobs), math.inf)
        self._swaps, self._decisions, self._seconds, self._rejected = 0, 0, 0.0, 0
        self._oom: set[str] = set()
        self._segments: list[Segment] = []
        self._memory: dict[str, list[tuple[float, float]]] = {place.name: [] for place in places}

    def run(self) -> Outcome:
        """To the end of the last job."""
        self.play()
        traced = self._traced.values()
        arrival = np.array([one.job.arrival_s for one in traced])
        ended = np.isfinite(self._ends)
        return Outcome(
            turnaround=self._ends - arrival,
            alone=np.array([min(work.alone for work in one.work.values()) for one in traced]),
            makespan=float(self._ends[ended].max(initial=0.0) - arrival.min(initial=0.0)) if len(arrival) else 0.0,
            swaps=self._swaps,
            oom=len(self._oom),
            rejected=self._rejected,
            decisions=self._decisions,
            decision_seconds=self._seconds,
            segments=tuple(self._segments),
            memory={name: tuple(points) for name, points in self._memory.items()},
        )

    def _waits_on(self, ticks: int) -> bool:
        if ticks > _MOST_TICKS:
            raise RuntimeError(f"{self._policy} never starts {len(self._live)} jobs, such as {next(iter(self._live))}")
        return True

    def _believed_steps(self, job: JobProgress) -> int:
        """The scheduler's guess of the whole less what is done, and at least a tenth of the guess."""
        if not self._noise:
            return super()._believed_steps(job)
        traced = self._traced[job.view.id]
        whole = traced.job.steps * traced.guess
        return max(1, math.ceil(max(whole - (traced.job.steps - job.steps_left), 0.1 * whole)))

    def _ask(self, view: ClusterView) -> Plan:
        started = time.process_time()
        plan = super()._ask(view)
        self._seconds += time.process_time() - started
        self._decisions += 1
        self._swaps += len(plan.preemptions) + len(plan.moves)
        return plan

    def _on_attached(self, job: JobProgress, actor: ActorProgress) -> None:
        self._traced[job.view.id].attached_at = self._now
        if self._used_share(actor) > 1 + 1e-9:
            self._oom.update(there.view.id for there in actor.jobs)

    def _on_detached(self, job: JobProgress, actor: ActorProgress) -> None:
        if self._record:
            name = job.view.id
            self._segments.append(Segment(name, actor.view.name, self._traced[name].attached_at, self._now))
            self._note_memory(actor)

    def _on_ended(self, job: JobProgress) -> None:
        self._ends[self._traced[job.view.id].number] = self._now

    def _on_rejected(self, job: JobProgress, reason: str) -> None:  # noqa: ARG002
        self._rejected += 1

    def _on_decided(self, changed: Iterable[ActorProgress]) -> None:
        if self._record:
            for actor in changed:
                self._note_memory(actor)

    def _note_memory(self, actor: ActorProgress) -> None:
        self._memory[actor.view.name].append((self._now, self._used_share(actor)))

    def _used_share(self, actor: ActorProgress) -> float:
        """Of an actor's memory, by what its jobs truly need."""
        device = self._devices[actor.view.id]
        used = sum(self._traced[job.view.id].work[device.name].bytes for job in actor.jobs)
        return (device.base_bytes + device.reserve_bytes + used) / device.memory_bytes


def _job_view(number: int, job: TraceJob, kinds: Sequence[Profile], guess: float, tokens_guess: float) -> JobView:
    """A job as the scheduler believes it to be, before it has started."""
    sizes = {
        kind.name: JobSize(job.adapter_bytes, math.ceil(min(worst * tokens_guess, kind.microbatch_tokens)))
        for kind, worst in ((kind, work_of(job, kind).worst_tokens) for kind in kinds)
    }
    steps = max(1, round(job.steps * guess))
    largest = max(sizes.values(), key=lambda size: size.worst_tokens)
    return JobView(
        id=job.job,
        base_model=job.base_model,
        priority=job.priority,
        arrival=number,
        adapter_bytes=largest.bytes,
        worst_tokens=largest.worst_tokens,
        sizes=sizes if len(kinds) > 1 else {},
        steps_left=steps,
        steps_total=steps,
        tokens_per_step=job.tokens_per_step,
        submitted_at=job.arrival_s,
        queued_at=job.arrival_s,
    )


def _actor_views(devices: Sequence[Profile], bases: Sequence[str], *, by_count: bool) -> tuple[ActorView, ...]:
    """Actors, each of which hosts one of the base models in turn."""
    width = len(str(max(len(devices) - 1, 0)))
    models = {
        device: (dict.fromkeys(bases, device.speed), dict.fromkeys(bases, device.memory)) for device in set(devices)
    }
    return tuple(
        ActorView(
            id=f"a{number:0{width}d}",
            name=f"a{number:0{width}d}",
            state=ActorState.READY,
            shape=ActorShape(device.name, device.microbatch_tokens, 2),
            base_model=bases[number % len(bases)] if bases else None,
            memory_limit=None if by_count else device.memory_bytes,
            speeds=models[device][0],
            memories=models[device][1],
            load_seconds=device.base_load_seconds,
            swap_seconds=device.swap_seconds,
        )
        for number, device in enumerate(devices)
    )
