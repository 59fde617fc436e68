"""Why places cannot be used for the time being: no actor can be started there, or a base model cannot be loaded."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

BLOCK_SECONDS = 60.0  # that no actor is started in a place where one could not be
BAR_SECONDS = 600.0  # that a place does not try again to load a base model which it could not
_MOST_DEATHS = 3  # of actors in a row that die while they load one base model


class Obstacle(NamedTuple):
    """A reason that holds until a point in time (monotonic)."""

    reason: str
    until: float

    @property
    def current_reason(self) -> str | None:
        """The reason; None when its time is over."""
        return self.reason if time.monotonic() < self.until else None


class Obstacles:
    """The obstacles of one cluster. Places are named by their ids."""

    def __init__(self) -> None:
        self._blocked: dict[str, Obstacle] = {}  # by place
        self._barred: dict[tuple[str, str], Obstacle] = {}  # by place and base model
        self._deaths: Counter[tuple[str, str]] = Counter()  # in a row, of actors that loaded a base model in a place

    def block(self, place_id: str, reason: str) -> None:
        """No actor could be started in a place: leave it alone for a while."""
        self._blocked[place_id] = Obstacle(reason, time.monotonic() + BLOCK_SECONDS)

    def blocked(self, place_id: str) -> str | None:
        """Why no actor is started in a place for the time being; None if one may be."""
        obstacle = self._blocked.get(place_id)
        return obstacle.current_reason if obstacle else None

    def bar(self, place_id: str, base_model: str, reason: str) -> None:
        """A base model could not be loaded in a place: do not try again for a while."""
        self._barred[place_id, base_model] = Obstacle(reason, time.monotonic() + BAR_SECONDS)

    def barred(self, place_id: str, base_model: str) -> str | None:
        """Why a base model is not loaded in a place for the time being; None if it may be."""
        obstacle = self._barred.get((place_id, base_model))
        return obstacle.current_reason if obstacle else None

    def bars(self, place_id: str) -> dict[str, str]:
        """The base models that are not loaded in a place for the time being, and why."""
        bases = [base_model for place, base_model in self._barred if place == place_id]
        return {base_model: reason for base_model in bases if (reason := self.barred(place_id, base_model))}

    def lift_if_barred_everywhere(self, place_ids: Sequence[str], base_model: str) -> dict[str, str]:
        """If a base model is barred from every one of some places: lift those bars, and tell why they were there.

        Returns:
            The reason by place; empty if the base model may still be loaded in one of them, which changes nothing.
        """
        reasons = {place_id: self.barred(place_id, base_model) for place_id in place_ids}
        lifted = {place_id: reason for place_id, reason in reasons.items() if reason is not None}
        if len(lifted) < len(reasons):
            return {}
        for place_id in lifted:
            del self._barred[place_id, base_model]
        return lifted

    def loaded(self, place_id: str, base_model: str) -> None:
        """A base model was loaded in a place: whatever kept it from that is over."""
        self._deaths.pop((place_id, base_model), None)
        self._barred.pop((place_id, base_model), None)

    def died_loading(self, place_id: str, base_model: str) -> int | None:
        """An actor died while it loaded a base model in a place.

        Returns:
            How many have in a row, if those are too many to try again; they then no longer count. Else None.
        """
        key = place_id, base_model
        self._deaths[key] += 1
        if self._deaths[key] < _MOST_DEATHS:
            return None
        return self._deaths.pop(key)
