"""What is known of base models on a place: measured by its actors, or guessed from shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.report import ActorReport
from orchestrator.cluster.places import Place
from orchestrator.knowledge.profiles import Profiles, idle_memory, leaving_room
from orchestrator.scheduler.estimate import prior_memory, prior_speed
from orchestrator.scheduler.view import ActorView, MemoryModel, SpeedModel

_LOAD_SECONDS, _LOAD_BYTES_PER_SECOND = 8.0, 5e8  # until loading was measured


@dataclass(frozen=True)
class Known:
    """What was measured, or is guessed, of base models on places of one kind; each by base model.

    Attributes:
        bases: Those in question.
        measured: Base models whose memory was measured there.
        swaps: Seconds of a swap, where one was measured.
    """

    bases: Mapping[str, BaseDescription]
    measured: frozenset[str]
    speeds: Mapping[str, SpeedModel]
    memories: Mapping[str, MemoryModel]
    loads: Mapping[str, float]
    swaps: Mapping[str, float]

    @classmethod
    def of(cls, slot: Place, profiles: Profiles, bases: Mapping[str, BaseDescription]) -> Known:
        """Look it up once for all places that are like `slot`."""
        found = profiles.of_place(slot)
        new = {ref: base for ref, base in bases.items() if ref not in found}
        loads = {ref: _LOAD_SECONDS + 4 * base.parameters / _LOAD_BYTES_PER_SECOND for ref, base in bases.items()}
        return cls(
            bases,
            frozenset(found),
            {ref: prior_speed(base, slot.shape) for ref, base in new.items()}
            | {ref: profile.speed.model for ref, profile in found.items()},
            {ref: prior_memory(base, slot.shape) for ref, base in new.items()}
            | {ref: profile.memory_model(slot) for ref, profile in found.items()},
            loads | {ref: one.load_seconds for ref, one in found.items() if one.load_seconds is not None},
            {ref: one.swap_seconds for ref, one in found.items() if one.swap_seconds is not None},
        )


def with_profiles(place: ActorView, slot: Place, known: Known, report: ActorReport | None = None) -> ActorView:
    """A place with what was measured of it.

    Args:
        place: As the cluster file and Ray have it.
        slot: Where it is.
        known: Of its kind.
        report: The latest of the actor there.
    """
    hosted = known.bases.get(place.base_model or "")
    limit = place.memory_limit
    memories = {
        ref: leaving_room(model, limit) if ref in known.measured else model for ref, model in known.memories.items()
    }
    if hosted and report and report.memory_idle and hosted.ref not in known.measured:
        memories[hosted.ref] = idle_memory(slot, hosted, report.memory_idle)
    budget = report.token_budget if report else 0
    return replace(
        place,
        shape=replace(place.shape, token_budget=budget or place.shape.token_budget),
        speeds=known.speeds,
        memories=memories,
        loads=known.loads,
        swap_seconds=known.swaps.get(place.base_model or "", max(known.swaps.values(), default=place.swap_seconds)),
    )
