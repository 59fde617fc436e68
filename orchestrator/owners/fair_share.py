"""Fair share between owners: a weight of their jobs, in the steps of priority that the scheduler knows.

Where an owner's weight is divided among their jobs, the scheduler makes the mean over the owners of the mean turnaround
of their jobs short, not the mean over all jobs: a grid of two hundred holds up nobody else's single run. A step of
priority doubles a job's weight, and whole steps change seldom while jobs come and go, so plans stay.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable


def fair_steps(owners: Iterable[str], share_of: Callable[[str], float]) -> dict[str, int]:
    """Steps of priority for the jobs of each owner.

    Args:
        owners: Whose it is, of every job that waits or trains.
        share_of: The share of an owner, more than 0, against those of the others.

    Returns:
        Owner -> steps, 0 where there is but one owner: log2 of what an owner's job weighs, where the weights of
        each owner's jobs together are as the shares are and the mean over all jobs is 1, rounded.
    """
    counts = Counter(owners)
    shares = {owner: share_of(owner) for owner in counts}
    each = sum(counts.values()) / sum(shares.values()) if shares else 0.0
    return {owner: round(math.log2(each * shares[owner] / count)) for owner, count in counts.items()}
