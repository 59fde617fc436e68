"""Which actor answers whom: the one that trains a job has its newest step, any host of the base model the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpu_actor.contract.questions import AskRequest


@dataclass(frozen=True)
class Part:
    """The answerers of a request that answer in one place.

    Attributes:
        actor: Name of the actor; None: no actor hosts the base model.
        request: Theirs alone, under an id of its own.
        numbers: Their places in the whole request.
    """

    actor: str | None
    request: AskRequest
    numbers: tuple[int, ...]


def divide(request: AskRequest, trains: Mapping[str, str], hosts: tuple[str, ...]) -> list[Part]:
    """Divide a request among the actors.

    Args:
        request: Of one base model.
        trains: Actor by id of the jobs that it trains.
        hosts: The actors that are ready and host the base model.
    """
    at_home = [trains.get(who.job_id) if who.job_id is not None else None for who in request.answerers]
    at_home = [actor if actor in hosts else None for actor in at_home]
    # who could answer anywhere joins an actor that answers anyway
    anywhere = next((actor for actor in at_home if actor is not None), hosts[0] if hosts else None)
    chosen = [actor or anywhere for actor in at_home]
    parts = []
    for place, actor in enumerate(dict.fromkeys(chosen)):
        numbers = tuple(number for number, one in enumerate(chosen) if one == actor)
        fields = {
            "request_id": f"{request.request_id}-{place}",
            "answerers": tuple(request.answerers[number] for number in numbers),
        }
        parts.append(Part(actor, request.model_copy(update=fields), numbers))
    return parts
