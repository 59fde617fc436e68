"""Successive halving of a grid (arXiv 1502.07943, without waiting as arXiv 1810.05934): the worst stop at each rung.

The rungs are at `halving_steps`, twice that, four times, and so on. A rung lets through `halving_keep` of the jobs
that can reach it. A job stops as soon as so many others are known to be better there, and a rung is looked at once it
is known who passes the one before; so who goes on depends on the losses alone, and not on who came first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


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


def expected_steps(done: float, total: float, first: int, keep: float) -> float:
    """Optimizer steps that a job of a halved grid still makes on average, all being equally good.

    Args:
        done: Steps that it has made.
        total: Steps of the whole run.
        first: Steps of the first rung.
        keep: Share that passes a rung.
    """
    expected, chance, at = 0.0, 1.0, done
    for rung in rungs(first, math.ceil(total)):
        if rung > done:
            expected += chance * (rung - at)
            chance, at = chance * keep, rung
    return expected + chance * (total - at)


def loss_at(rung: int, rows: Iterable[Mapping[str, Any]]) -> float | None:
    """What a job is judged by at a rung: the latest evaluation loss up to it, else the mean training loss since half.

    Args:
        rung: The optimizer step.
        rows: Of `metrics.jsonl`.
    """
    until = [row for row in rows if row.get("step", 0) <= rung]
    evaluated = [row["eval_loss"] for row in until if "eval_loss" in row]
    trained = [row["loss"] for row in until if "loss" in row and row["step"] > rung / 2]
    if not evaluated and not trained:
        return None
    return float(evaluated[-1] if evaluated else sum(trained) / len(trained))


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
