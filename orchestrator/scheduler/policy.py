"""decide(view) -> plan: the policy `priority`.

The rules, in full:

1. Jobs are looked at by priority (higher first), then by arrival.
2. A job starts on an actor that hosts its base model and has memory left by prediction: the one with the fewest
   jobs. While an actor with fewer jobs is still loading that base model, the job waits for it.
3. A job that does not fit lets those behind it pass, until it has waited for `PATIENCE_S`. From then on one actor is
   kept for it: none behind it starts there, so that the actor drains. The same holds for a job whose base model
   nobody hosts, so that no base model starves. One actor at a time is kept for a base model.
4. An actor without an active job, whose base model no waiting job can use there, changes to another: first to base
   models that nobody hosts, in the order of the jobs that wait for them, then to those with more waiting jobs than
   actors that are loading for them. An actor that the cluster file gives to one base model never changes; nor does
   one with active jobs.
5. A job that would not fit even alone on any actor that may host its base model is rejected.
"""

from __future__ import annotations

from collections import Counter

from gpu_actor.footprint import BaseDescription
from orchestrator.scheduler import estimate
from orchestrator.scheduler.estimate import in_words
from orchestrator.scheduler.view import ActorShape, ActorState, ActorView, ClusterView, JobView, Plan

PATIENCE_S = 60.0


def decide(view: ClusterView) -> Plan:
    """The plan for one look at the cluster.

    Equal views give equal plans, and a plan that was carried out calls for no further placement.
    """
    return _Planner(view).plan()


class _Place:
    """One actor's place while the plan is made."""

    def __init__(self, actor: ActorView, sizes: _Sizes) -> None:
        self.id, self.name, self.pinned = actor.id, actor.name, actor.pinned
        self.base, self.state, self.limit = actor.base_model, actor.state, actor.memory_limit
        self.reason = actor.reason
        self.jobs: list[JobView] = []
        self.kept_for: JobView | None = None
        self._shape, self._sizes = actor.shape, sizes
        self._adapters = self._excess = 0

    def add(self, job: JobView) -> None:
        """Count a job's memory here."""
        self.jobs.append(job)
        self._adapters += job.adapter_bytes
        self._excess = max(self._excess, self._sizes.excess(job, self._shape))

    def may_host(self, base: str) -> bool:
        return self.pinned in (None, base)

    def free(self, base: str) -> int | None:
        """Bytes left for further adapters with `base` hosted; None when the limit is unknown."""
        if self.limit is None:
            return None
        return self.limit - self._sizes.fixed(base, self._shape) - self._adapters - self._excess

    def needs(self, job: JobView) -> int:
        """Bytes that a job adds to those that are here."""
        return job.adapter_bytes + max(0, self._sizes.excess(job, self._shape) - self._excess)

    def fits(self, job: JobView) -> bool:
        free = self.free(job.base_model)
        return free is None or self.needs(job) <= free

    def alone(self, job: JobView) -> int:
        """Bytes of an actor with this job only, its base model included."""
        fixed = self._sizes.fixed(job.base_model, self._shape)
        return fixed + job.adapter_bytes + self._sizes.excess(job, self._shape)

    def fits_alone(self, job: JobView) -> bool:
        return self.limit is None or self.alone(job) <= self.limit

    @property
    def hosts(self) -> str | None:
        """The base model that jobs can count on here."""
        return self.base if self.state in (ActorState.READY, ActorState.STARTING) else None

    @property
    def idle(self) -> bool:
        """Whether its base model may change now."""
        return not self.jobs and self.state in (ActorState.EMPTY, ActorState.READY)


class _Sizes:
    """Predicted bytes, each computed once for a plan."""

    def __init__(self, view: ClusterView) -> None:
        self._bases = view.bases
        self._fixed: dict[object, int] = {}
        self._excess: dict[object, int] = {}

    def _base(self, ref: str) -> BaseDescription:
        return self._bases[ref]

    def fixed(self, ref: str, shape: ActorShape) -> int:
        key = (ref, shape)
        if key not in self._fixed:
            self._fixed[key] = estimate.fixed_bytes(self._base(ref), shape)
        return self._fixed[key]

    def excess(self, job: JobView, shape: ActorShape) -> int:
        key = (job.base_model, job.worst_tokens, shape)
        if key not in self._excess:
            self._excess[key] = estimate.excess_bytes(self._base(job.base_model), job.worst_tokens, shape)
        return self._excess[key]


class _Planner:
    def __init__(self, view: ClusterView) -> None:
        sizes = _Sizes(view)
        self._now = view.now
        self._places = [_Place(actor, sizes) for actor in sorted(view.actors, key=lambda actor: actor.id)]
        by_id = {place.id: place for place in self._places}
        for job in view.jobs:
            if job.actor in by_id:
                by_id[job.actor].add(job)
        queued = [job for job in view.jobs if job.actor is None]
        self._queue = sorted(queued, key=_rank)
        self._waiting: list[JobView] = []
        self._placements: dict[str, str] = {}
        self._rejections: dict[str, str] = {}
        self._rehosts: dict[str, str] = {}

    def plan(self) -> Plan:
        for job in self._queue:
            self._place(job)
        self._change_bases()
        return Plan(
            placements=self._placements,
            waiting={job.id: self._why(job) for job in self._waiting},
            rejections=self._rejections,
            rehosts=self._rehosts,
            order={
                p.id: tuple(job.id for job in sorted(p.jobs, key=_rank))
                for p in self._places
                if p.jobs and p.state is ActorState.READY
            },
        )

    # -- placing -------------------------------------------------------------------------------------------------

    def _place(self, job: JobView) -> None:
        never = self._never(job)
        if never:
            self._rejections[job.id] = never
            return
        hosts = [p for p in self._hosts(job.base_model) if p.kept_for is None and p.fits(job)]
        if hosts:
            best = min(
                hosts, key=lambda p: (len(p.jobs), p.state is ActorState.STARTING, -(p.free(job.base_model) or 0), p.id)
            )
            best.add(job)
            if best.state is ActorState.READY:
                self._placements[job.id] = best.id
                return
        elif self._now - job.queued_at >= PATIENCE_S:
            self._keep(job)
        self._waiting.append(job)

    def _hosts(self, base: str) -> list[_Place]:
        return [place for place in self._places if place.hosts == base]

    def _never(self, job: JobView) -> str | None:
        """Why a job can never run here; None if it can, or nobody knows yet."""
        places = [place for place in self._places if place.may_host(job.base_model)]
        if not places or any(place.fits_alone(job) for place in places):
            return None
        largest = max(places, key=lambda place: (place.limit or 0) - place.alone(job))
        total = largest.alone(job)
        return (
            f"needs {in_words(total)} ({total} bytes) with its base model, the roomiest actor may use "
            f"{in_words(largest.limit or 0)} ({largest.limit} bytes); lower training.cutoff_len, "
            f"training.per_device_train_batch_size or lora.r, or add an actor with more memory"
        )

    def _keep(self, job: JobView) -> None:
        """Keep an actor for a job that has waited long: an idle one, or a host of its base model, or the emptiest."""
        if any(p.kept_for is not None and p.kept_for.base_model == job.base_model for p in self._places):
            return
        places = [
            place
            for place in self._places
            if place.kept_for is None
            and (place.state in (ActorState.EMPTY, ActorState.READY) or place.hosts == job.base_model)
            and place.may_host(job.base_model)
            and place.fits_alone(job)
        ]
        if places:
            best = min(
                places, key=lambda p: (not p.idle, p.hosts != job.base_model, p.pinned is None, len(p.jobs), p.id)
            )
            best.kept_for = job

    # -- which base model where ----------------------------------------------------------------------------------

    def _change_bases(self) -> None:
        for place in self._places:
            job = place.kept_for
            if job is not None and place.idle and place.base != job.base_model:
                self._rehost(place, job.base_model)
        for job in self._waiting:
            if not self._hosts(job.base_model):
                self._start(job)
        seen: Counter[str] = Counter()
        for job in self._waiting:
            seen[job.base_model] += 1
            loading = [p for p in self._hosts(job.base_model) if p.state is ActorState.STARTING]
            if len(loading) < seen[job.base_model]:
                self._start(job)

    def _start(self, job: JobView) -> None:
        """Give an idle actor to the base model of a waiting job, if there is one where the job fits."""
        places = [
            place
            for place in self._places
            if place.idle and place.base != job.base_model and place.may_host(job.base_model) and place.fits_alone(job)
        ]
        if places:
            self._rehost(min(places, key=lambda p: (p.pinned is None, p.base is not None, p.id)), job.base_model)

    def _rehost(self, place: _Place, base: str) -> None:
        self._rehosts[place.id] = base
        place.base, place.state = base, ActorState.STARTING

    # -- words ---------------------------------------------------------------------------------------------------

    def _why(self, job: JobView) -> str:
        """Why a job waits."""
        hosts = self._hosts(job.base_model)
        loading = [
            place for place in hosts if place.state is ActorState.STARTING and (job in place.jobs or place.fits(job))
        ]
        if loading:
            return f"{job.base_model} is being loaded on {loading[0].name}"
        kept = [place for place in hosts if place.kept_for not in (None, job) and place.fits(job)]
        if kept:
            return f"{kept[0].name} is kept for a job that has waited longer"
        if hosts:
            best = max(hosts, key=lambda place: (place.free(job.base_model) or 0) - place.needs(job))
            free = max(0, best.free(job.base_model) or 0)
            return (
                f"needs {in_words(best.needs(job))}, the roomiest actor that hosts {job.base_model} has "
                f"{in_words(free)} free"
            )
        return f"no actor hosts {job.base_model} and {self._why_unhosted(job)}"

    def _why_unhosted(self, job: JobView) -> str:
        places = [place for place in self._places if place.may_host(job.base_model)]
        if not places:
            return "the cluster file gives every actor to another base model" if self._places else "there is no actor"
        keeping = [place for place in places if place.kept_for is job]
        if keeping:
            return f"{keeping[0].name} changes to it once its jobs are done"
        large = [place for place in places if place.fits_alone(job)]
        blocked = [place for place in large if place.state is ActorState.BLOCKED]
        if len(blocked) == len(large):
            return "; ".join(f"{place.name}: {place.reason or 'out of reach'}" for place in blocked)
        return "every actor is busy with another base model"


def _rank(job: JobView) -> tuple[int, int, str]:
    return (-job.priority, job.arrival, job.id)
