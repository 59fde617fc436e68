"""When the jobs of a cluster will be over, and how sure that is: the forecast, and twice more for its uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from orchestrator.scheduler.forecast import Forecast, forecast
from orchestrator.scheduler.view import ActorView, ClusterView, SpeedModel

LEAST_ERROR = 0.1  # of a measured speed: what a fit cannot know, such as what else the machine has to do
_MOST_ERROR = 0.4
_SIGMAS = 2.0
_MOST_WORK = 50_000  # of each forecast: about a second


@dataclass(frozen=True)
class Outlook:
    """When a job will be over, on the clock of the view. Jobs that come later, and early stops, are not in it.

    Attributes:
        start: When it starts to train; that it does so already is the time of the view.
        finish: When it ends.
        earliest: The same if every measured speed was underestimated by twice its error.
        latest: The same if it was overestimated.
        guess: Whether it trains where speeds were hardly measured: then it may be off by a factor of several.
    """

    start: float
    finish: float
    earliest: float
    latest: float
    guess: bool


def outlooks(view: ClusterView, policy: str) -> dict[str, Outlook]:
    """The outlook of each job that will end, as far as the forecast goes."""
    looks = (view, _at_speed(view, -_SIGMAS), _at_speed(view, _SIGMAS))
    likely, fast, slow = (forecast(look, policy, most_work=_MOST_WORK) for look in looks)
    places = {actor.id: actor for actor in view.actors}
    return {
        job_id: Outlook(
            found.start,
            found.finish,
            min(found.finish, fast[job_id].finish),
            max(found.finish, slow[job_id].finish),
            any(places[place].guessed(found.job.base_model) for place in found.places),
        )
        for job_id, found in likely.items()
        if _is_known(found) and _is_known(slow[job_id])
    }


def of_the_queue(outlooks: dict[str, Outlook]) -> Outlook | None:
    """When the last of some jobs is over; None of none."""
    if not outlooks:
        return None
    every = outlooks.values()
    return Outlook(
        min(one.start for one in every),
        max(one.finish for one in every),
        max(one.earliest for one in every),
        max(one.latest for one in every),
        any(one.guess for one in every),
    )


def _is_known(found: Forecast) -> bool:
    return math.isfinite(found.finish) and not found.beyond and found.rejected is None


def _at_speed(view: ClusterView, sigmas: float) -> ClusterView:
    """The view with every step slower by so many standard errors; faster where they are negative."""
    return replace(view, actors=tuple(_actor_at_speed(actor, sigmas) for actor in view.actors))


def _actor_at_speed(actor: ActorView, sigmas: float) -> ActorView:
    def changed(base: str, speed: SpeedModel) -> SpeedModel:
        doubt = actor.doubts.get(base, 0.0)
        error = LEAST_ERROR if math.isinf(doubt) else max(LEAST_ERROR, min(doubt, _MOST_ERROR))
        factor = (1 + abs(sigmas) * error) ** math.copysign(1, sigmas)
        return SpeedModel(speed.step_seconds * factor, speed.token_seconds * factor, speed.adapter_seconds * factor)

    return replace(actor, speeds={base: changed(base, speed) for base, speed in actor.speeds.items()})
