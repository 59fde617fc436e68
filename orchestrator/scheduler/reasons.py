"""Why a job waits, leaves or is refused, in words a person can act on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator import formatting
from orchestrator.scheduler.job_columns import Jobs
from orchestrator.scheduler.place_columns import Places
from orchestrator.scheduler.view import ActorState, JobView


def never_fits(places: Places, job: JobView) -> str:
    """Why no place can ever hold a job."""
    hosts = places.kinds_that_may_host(job.base_model)
    largest = max(hosts, key=lambda place: places.limit(place) - places.alone(place, job))
    total, limit = int(places.alone(largest, job)), int(places.limit(largest))
    return (
        f"needs {formatting.size(total)} ({total} bytes) with its base model, the roomiest actor may use "
        f"{formatting.size(limit)} ({limit} bytes); lower training.cutoff_len, "
        f"training.per_device_train_batch_size or lora.r, or add an actor with more memory"
    )


class Reasons:
    """Words for one plan."""

    def __init__(self, places: Places, jobs: Jobs, bases: Sequence[str], turn: str) -> None:
        self._places, self._jobs, self._bases = places, jobs, bases
        self._turns = [turn.format(base=base) for base in bases]
        self._free = places.room.free()
        self._hosts = {number: np.flatnonzero(places.hosts(number)).tolist() for number in range(len(bases))}
        self._loading = {n: [p for p in hosts if places.starting[p]] for n, hosts in self._hosts.items()}
        self._kept = {n: [p for p in hosts if places.kept_for[p] >= 0] for n, hosts in self._hosts.items()}
        self._roomiest = {n: max(hosts, key=self._free.__getitem__, default=-1) for n, hosts in self._hosts.items()}

    def leaves(self, job: int) -> str:
        """Why a running job is taken off its actor."""
        place = self._places.views[self._jobs.at[job]].name
        return f"leaves {place} to jobs that go first"

    def waits(self, job: int, after: int | None) -> str:
        """Why a queued job waits; `after` is the place it gets as soon as others have left."""
        places, base = self._places, int(self._jobs.base[job])
        if after is not None:
            return f"starts on {places.views[after].name} once a job that gives way has left it"
        hosts, ref = self._hosts[base], self._bases[base]
        if self._jobs.alone[job] and hosts:
            return f"is tried alone, since actors died that it was on: every actor that hosts {ref} has other jobs"
        for place in self._loading[base]:
            if job in places.planned[place] or self._fits(job, place):
                if places.closed[place]:
                    return f"{places.views[place].name} changes to {ref} as soon as its jobs have left"
                return f"{ref} is being loaded on {places.views[place].name}"
        if not hosts:
            return f"no actor hosts {ref} and {self._why_unhosted(self._jobs.views[job])}"
        for place in self._kept[base]:
            if places.kept_for[place] != job and self._fits(job, place):
                return f"{places.views[place].name} is kept for a job that has waited longer"
        for place in hosts:
            if places.solo[place] and self._fits(job, place):
                return f"{places.views[place].name} is kept for a job alone, since actors died that it was on"
        roomiest = self._roomiest[base]
        if self._fits(job, roomiest):
            return self._turns[base]
        return (
            f"needs {formatting.size(self._needs(job, roomiest))}, the roomiest actor that hosts {ref} has "
            f"{formatting.size(max(0.0, self._free[roomiest]))} free"
        )

    def _needs(self, job: int, place: int) -> float:
        room = self._places.room
        adapter_bytes, worst = self._places.size_at(place, job)
        more = max(0.0, worst - room.tokens[place]) if room.capped[place] else worst
        return float(adapter_bytes + room.per_token[place] * more)

    def _fits(self, job: int, place: int) -> bool:
        return self._needs(job, place) <= float(self._free[place])

    def _why_unhosted(self, job: JobView) -> str:
        places = self._places
        hosts = [place for place in range(places.count) if places.may_host(place, job.base_model)]
        if not hosts:
            return "the cluster file gives every actor to another base model" if places.count else "there is no actor"
        for place in hosts:
            kept = int(places.kept_for[place])
            if kept >= 0 and self._jobs.views[kept].id == job.id:
                return f"{places.views[place].name} changes to it once its jobs are done"
        large = [place for place in hosts if places.fits_alone(place, job)]
        out = {place: why for place in large if (why := self._out_of_reach(place, job.base_model))}
        if len(out) == len(large):
            return "; ".join(f"{places.views[place].name}: {why}" for place, why in out.items())
        return "every actor is busy with another base model"

    def _out_of_reach(self, place: int, base: str) -> str | None:
        view = self._places.views[place]
        if self._places.states[place] is ActorState.BLOCKED:
            return view.reason or "out of reach"
        return f"could not load it: {view.barred[base]}" if base in view.barred else None
