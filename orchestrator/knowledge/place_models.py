"""What is known of base models on a place: measured by its actors, or guessed from shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.report import ActorReport
from orchestrator.cluster.places import Place
from orchestrator.knowledge.profiles import Profile, Profiles, idle_memory, leaving_room
from orchestrator.scheduler.estimate import device_kind, prior_memory, prior_speed
from orchestrator.scheduler.view import ActorView, MemoryModel, SpeedModel

_LOAD_SECONDS, _LOAD_BYTES_PER_SECOND = 8.0, 5e8  # until loading was measured


@dataclass(frozen=True)
class PlaceModels:
    """What was measured, or is guessed, of base models on places of one kind; each by base model.

    Attributes:
        bases: Those in question.
        measured: Base models whose memory was measured there.
        speeds: How fast they train there.
        doubts: About that, as in `ActorView`.
        memories: What they take of the memory there.
        loads: Seconds to load them there.
        swaps: Seconds of a swap, where one was measured.
    """

    bases: Mapping[str, BaseDescription]
    measured: frozenset[str]
    speeds: Mapping[str, SpeedModel]
    doubts: Mapping[str, float]
    memories: Mapping[str, MemoryModel]
    loads: Mapping[str, float]
    swaps: Mapping[str, float]

    @classmethod
    def of(cls, place: Place, profiles: Profiles, bases: Mapping[str, BaseDescription]) -> PlaceModels:
        """Look it up once for all places that are like `place`."""
        measured = profiles.of_place(place)
        guessed = {ref: base for ref, base in bases.items() if ref not in measured}
        return cls(
            bases,
            frozenset(measured),
            {ref: prior_speed(base, place.shape) for ref, base in guessed.items()}
            | {ref: profile.speed.model for ref, profile in measured.items()},
            dict.fromkeys(guessed, math.inf) | {ref: profile.doubt for ref, profile in measured.items()},
            {ref: prior_memory(base, place.shape) for ref, base in guessed.items()}
            | {ref: profile.memory_model(place) for ref, profile in measured.items()},
            _loads(measured, profiles, bases),
            {ref: one.swap_seconds for ref, one in measured.items() if one.swap_seconds is not None}
            or {ref: seconds for ref in bases if (seconds := profiles.swap_elsewhere(ref)) is not None},
        )


def _loads(
    measured: Mapping[str, Profile], profiles: Profiles, bases: Mapping[str, BaseDescription]
) -> dict[str, float]:
    """Seconds to load each base model: as measured there, or on other places, or guessed by its size and the others."""
    guesses = {ref: _LOAD_SECONDS + 4 * base.parameters / _LOAD_BYTES_PER_SECOND for ref, base in bases.items()}
    known = {ref: one.load_seconds for ref, one in measured.items() if one.load_seconds is not None}
    known |= {
        ref: seconds for ref in bases if ref not in known and (seconds := profiles.load_elsewhere(ref)) is not None
    }
    ratios = [known[ref] / guess for ref, guess in guesses.items() if ref in known]
    factor = sum(ratios) / len(ratios) if ratios else 1.0
    return {ref: factor * guess for ref, guess in guesses.items()} | known


def with_models(
    views: Iterable[tuple[ActorView, Place, ActorReport | None]],
    profiles: Profiles,
    bases: Mapping[str, BaseDescription],
) -> Iterator[ActorView]:
    """Places with what was measured of them, and guesses where nothing was.

    Args:
        views: Each place as the cluster file and Ray have it, where it is, and the latest report of the actor there.
        profiles: What was measured.
        bases: The base models in question.
    """
    by_kind: dict[object, PlaceModels] = {}
    for view, place, report in views:
        kind = (place.settings, place.cpu_threads, place.device_name, place.token_budget)
        if kind not in by_kind:
            by_kind[kind] = PlaceModels.of(place, profiles, bases)
        yield _with_models(view, place, by_kind[kind], report)


def _with_models(view: ActorView, place: Place, models: PlaceModels, report: ActorReport | None) -> ActorView:
    hosted = models.bases.get(view.base_model or "")
    limit = view.memory_limit
    # a guess as well on a GPU: its actor begins with what there is room for, where a CPU's begins with the default
    short = models.bases if device_kind(place.device) == "cuda" else models.measured
    memories = {ref: leaving_room(model, limit) if ref in short else model for ref, model in models.memories.items()}
    if hosted and report and report.memory_idle and hosted.ref not in models.measured:
        guess = idle_memory(place, hosted, report.memory_idle)
        memories[hosted.ref] = leaving_room(guess, limit) if hosted.ref in short else guess
    budget = report.token_budget if report else 0
    return replace(
        view,
        shape=replace(view.shape, token_budget=budget or view.shape.token_budget),
        speeds=models.speeds,
        memories=memories,
        loads=models.loads,
        doubts=models.doubts,
        swap_seconds=models.swaps.get(view.base_model or "", max(models.swaps.values(), default=view.swap_seconds)),
    )
