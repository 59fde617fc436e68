"""What is held against a job whose actors died: pure decisions, made from values that the store keeps.

A node, a driver or a device that is gone says nothing about the jobs there. The death of an actor's process by itself
(killed, out of memory, a crash in native code) may have been any of its jobs, or none. So it is nobody's until proven:

1. A job that was on two actors in a row whose processes died is tried alone: it shares no actor until it is cleared.
2. If the process dies that has this job alone, the job is the culprit. What it explains is taken off the others.
3. A job that trains past where and for longer than it did when its actors died is cleared.

Before each new try a job waits, twice as long each time, so that what does not pass costs little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from orchestrator import formatting

SUSPECT_DEATHS = 2  # in a row, after which a job is tried alone
FIRST_WAIT_SECONDS, MOST_WAIT_SECONDS = 2.0, 300.0  # before a new try: after the first loss in a row, and at most
_LONGER = 1.5  # times the longest stay that ended with a loss, after which the job has outlived it


@dataclass(frozen=True)
class Losses:
    """The actors that a job has lost in a row.

    Attributes:
        deaths: Names of those whose processes died by themselves.
        others: How many were lost with their node, their driver or their device.
        step: The furthest that the job had come when one was lost.
        seconds: The longest that it had been on one of them.
        not_before: When it may be tried again (Unix time).
        reason: How the latest one was lost, in words.
    """

    deaths: tuple[str, ...] = ()
    others: int = 0
    step: int = 0
    seconds: float = 0.0
    not_before: float = 0.0
    reason: str = ""

    @classmethod
    def of_row(cls, values: Mapping[str, Any] | None) -> Losses:
        """From what `row` made; None is a job that has lost no actor."""
        return cls(**{**values, "deaths": tuple(values["deaths"])}) if values else NONE

    def row(self) -> dict[str, Any] | None:
        """As plain values for the store; None where there is nothing to keep."""
        return {**asdict(self), "deaths": list(self.deaths)} if self != NONE else None

    def waits(self, now: float) -> str | None:
        """Why a job is not tried again yet, in words; None if it may be.

        Args:
            now: Unix time.
        """
        if now >= self.not_before:
            return None
        count = formatting.plural(len(self.deaths) + self.others, "actor")
        return (
            f"its next try at {formatting.clock(self.not_before)}: it lost {count} in a row, the last so: {self.reason}"
        )


NONE = Losses()


@dataclass(frozen=True)
class LostActor:
    """How a job lost its actor.

    Attributes:
        name: Of the actor.
        reason: How it was lost, in words.
        by_itself: Whether its process died by itself; else the job had no part in it.
        alone: Whether the job was the only one there.
        step: How far it was.
        seconds: How long it had been there.
        time: When it was lost (Unix time).
    """

    name: str
    reason: str
    by_itself: bool
    alone: bool
    step: int
    seconds: float
    time: float


def after(losses: Losses, lost: LostActor) -> Losses:
    """What is held against a job when it has lost a further actor, and when it may be tried again."""
    deaths = (*losses.deaths, lost.name) if lost.by_itself else losses.deaths
    others = losses.others + (not lost.by_itself)
    wait = min(MOST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** min(len(deaths) + others - 1, 30))
    step, seconds = max(losses.step, lost.step), max(losses.seconds, lost.seconds)
    return Losses(deaths, others, step, seconds, lost.time + wait, lost.reason)


def tried_alone(losses: Losses, max_retries: int) -> bool:
    """Whether a job shares no actor until it is cleared or found to be the culprit: on its last try at the latest."""
    deaths = len(losses.deaths)
    return deaths > 0 and deaths >= min(SUSPECT_DEATHS, max_retries)


def is_culprit(losses: Losses, lost: LostActor, max_retries: int) -> bool:
    """Whether a further loss proves that a job kills its actors: the process died that had the job alone, as a suspect.

    A job without any retry has no second try to be found out by: its first death alone counts.

    Args:
        losses: What was held against the job before.
        lost: The latest of its actors.
        max_retries: `queue.max_retries` of the job.
    """
    return lost.by_itself and lost.alone and (tried_alone(losses, max_retries) or not max_retries)


def explained(losses: Losses, culprit: Losses) -> Losses:
    """What is still held against a job when a culprit is found that was on some of the same actors."""
    deaths = tuple(actor for actor in losses.deaths if actor not in culprit.deaths)
    if deaths == losses.deaths:
        return losses
    return replace(losses, deaths=deaths, not_before=0.0) if deaths or losses.others else NONE


def outlived(losses: Losses, step: int, seconds: float) -> bool:
    """Whether a job has come further, and been on its actor for longer, than when its actors were lost.

    Args:
        losses: What is held against it.
        step: The optimizer step that it has reached.
        seconds: That it has been on its actor.
    """
    return step > losses.step and seconds > _LONGER * losses.seconds


def culprit_reason(losses: Losses, latest: str) -> str:
    """Why a job failed that kills its actors, and what to do.

    Args:
        losses: With the latest loss.
        latest: The actor's end, in words.
    """
    if len(losses.deaths) > 1:
        died = f"the process of its actor died {len(losses.deaths)} times in a row, the last time"
    else:
        died = "the process of its actor died"
    return (
        f"{died} with no other job on it ({latest}), so it is taken to be the cause. Most often memory runs out: lower "
        "training.cutoff_len or training.per_device_train_batch_size, look at its data file and tokenizer, or give the "
        "actor a `memory_limit`; else the actor's log in the Ray dashboard has more. `loray retry` goes on from its "
        "last checkpoint"
    )
