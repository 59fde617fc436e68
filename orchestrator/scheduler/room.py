"""What still fits into an actor."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


class PlaceMemory(NamedTuple):
    """The memory of one place with one base model; places where it is equal need not be looked at one by one.

    Attributes:
        limit: Bytes that may be used; infinite where nobody knows.
        fixed: Bytes of the memory model that do not grow with tokens.
        per_token: Bytes of one token of a shared batch.
        cap: Most tokens of a shared batch; -1 where there is no such limit.
        size: Which of the sizes of a job count there (`job_columns.Jobs`).
    """

    limit: float
    fixed: float
    per_token: float
    cap: float
    size: int = 0

    def holds_alone(self, adapter_bytes: Floats, worst: Floats) -> Mask:
        """Which jobs fit onto a place that has nothing else; columns over sizes and jobs."""
        tokens = np.maximum(self.cap, worst[self.size])
        mask: Mask = self.fixed + adapter_bytes[self.size] + self.per_token * tokens <= self.limit
        return mask


class Room:
    """Bytes of each place: what its base model and its adapters need, and what is left."""

    def __init__(self, limits: Floats, fixed: Floats, per_token: Floats, caps: Floats) -> None:
        """Without any jobs; all columns over places, as in `PlaceMemory`."""
        self.limits, self.fixed, self.per_token, self.caps = limits, fixed, per_token, caps
        self.capped = caps >= 0
        self.adapters = np.zeros(len(limits))
        self.tokens = np.where(self.capped, caps, 0.0)

    def copy(self) -> Room:
        """As it is now."""
        other = Room(self.limits, self.fixed, self.per_token, self.caps)
        other.adapters, other.tokens = self.adapters.copy(), self.tokens.copy()
        return other

    def rebase(self, place: int, memory: PlaceMemory) -> None:
        """Another base model on a place without jobs."""
        self.limits[place], self.fixed[place] = memory.limit, memory.fixed
        self.per_token[place], self.caps[place] = memory.per_token, memory.cap
        self.capped[place] = memory.cap >= 0
        self.clear(place)

    def clear(self, place: int) -> None:
        """Count no job there."""
        self.adapters[place], self.tokens[place] = 0.0, max(self.caps[place], 0.0)

    def add(self, place: int, adapter_bytes: float, worst: float) -> None:
        """Count a job in."""
        self.adapters[place] += adapter_bytes
        if self.capped[place]:
            self.tokens[place] = max(self.tokens[place], worst)
        else:
            self.tokens[place] += worst

    def free(self) -> Floats:
        """Bytes left."""
        used: Floats = self.fixed + self.adapters + self.per_token * self.tokens
        return self.limits - used

    def needs(self, adapter_bytes: float | Floats, worst: float | Floats) -> Floats:
        """Bytes that a further job adds on each place; it may have a size of its own on each."""
        more = np.where(self.capped, np.maximum(0.0, worst - self.tokens), worst)
        return adapter_bytes + self.per_token * more

    def fits(self, adapter_bytes: float | Floats, worst: float | Floats) -> Mask:
        """Where a further job fits."""
        fits: Mask = self.needs(adapter_bytes, worst) <= self.free()
        return fits

    def fits_at(self, place: int, adapter_bytes: float, worst: float) -> bool:
        """Whether a further job fits on one place."""
        covered = self.tokens[place]
        more = max(0.0, worst - covered) if self.capped[place] else worst
        used = self.fixed[place] + self.adapters[place] + self.per_token[place] * (covered + more)
        return bool(used + adapter_bytes <= self.limits[place])

    def may_fit(self, where: Mask, adapter_bytes: Floats, worst: Floats) -> Mask:
        """Which of many jobs may still fit on one of some places: none that fits is left out."""
        covered = float(self.tokens[where & self.capped].max(initial=0.0))
        needs = adapter_bytes + float(self.per_token[where].min()) * np.maximum(0.0, worst - covered)
        mask: Mask = needs <= float(self.free()[where].max())
        return mask
