"""How long the jobs of each owner have held devices; one that several jobs share counts for each by its part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise

from orchestrator.store.records import OwnedStay


def device_seconds(stays: Iterable[OwnedStay], since: float, now: float) -> dict[str, float]:
    """Seconds of devices by owner.

    Args:
        stays: All that may reach into the time in question, of every owner: who shares a device decides.
        since: Begin of the time that counts (Unix time).
        now: Its end.
    """
    changes: dict[str, list[tuple[float, str, int]]] = defaultdict(list)
    for stay in stays:
        begin, end = max(stay.since, since), min(now if stay.until is None else stay.until, now)
        if begin < end:
            changes[stay.actor] += [(begin, stay.owner, 1), (end, stay.owner, -1)]
    seconds: dict[str, float] = defaultdict(float)
    for events in changes.values():
        here: dict[str, int] = defaultdict(int)
        events.sort()
        for (time, owner, change), (after, *_) in pairwise([*events, (now, "", 0)]):
            here[owner] += change
            together = sum(here.values())
            for one, count in here.items() if after > time and together else ():
                seconds[one] += (after - time) * count / together
    return dict(seconds)
