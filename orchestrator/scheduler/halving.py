"""Successive halving of a grid (arXiv 1502.07943, without waiting as arXiv 1810.05934): the worst stop at each rung.

The rungs are at `halving_steps`, twice that, four times, and so on. A rung lets through `halving_keep` of the jobs
that can reach it. A job stops as soon as so many others are known to be better there, and a rung is looked at once it
is known who passes the one before; so who goes on depends on the losses alone, and not on who came first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Member:
    """One job of a group.

    Attributes:
        total_steps: Its optimizer steps; 0 while unknown.
        alive: Whether it may still come to further rungs: it waits, runs or is paused.
        losses: Its loss at each rung that it has reached, by optimizer step.
    """

    id: str
    name: str
    total_steps: int
    alive: bool
    losses: Mapping[int, float] = field(default_factory=dict)


def rungs(first: int, total_steps: int) -> list[int]:
    """The rungs of a job; the end of the run is none."""
    steps, step = [], first
    while step < total_steps:
        steps.append(step)
        step *= 2
    return steps


def stops(members: Sequence[Member], first: int, keep: float) -> dict[str, str]:
    """Which jobs of a group stop now, and why, in words.

    Args:
        members: All jobs of the group, ended ones included.
        first: Optimizer steps of the first rung.
        keep: Share that passes a rung.
    """
    reasons: dict[str, str] = {}
    passing = list(members)
    for rung in rungs(first, max((member.total_steps for member in members), default=0)):
        passing = [member for member in passing if member.alive or rung in member.losses]
        places = math.ceil(keep * len(passing))
        ranked = sorted((m for m in passing if rung in m.losses), key=lambda m: (m.losses[rung], m.id))
        for place, member in enumerate(ranked[places:], start=places + 1):
            if member.alive and member.id not in reasons:
                best = ranked[0]
                reasons[member.id] = (
                    f"stopped early: at step {rung} its loss {member.losses[rung]:.4g} is number {place} of "
                    f"{len(passing)}, and {places} pass (early_stop.halving_keep = {keep:g}); the best is "
                    f"{best.name} with {best.losses[rung]:.4g}"
                )
        if len(ranked) < len(passing):
            return reasons  # who passes this rung is not known yet
        passing = ranked[:places]
    return reasons
