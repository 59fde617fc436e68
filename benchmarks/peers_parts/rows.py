"""What was measured, as rows: a peer against Loray on the same jobs, and in words where Loray is not ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from .runs import SideFailed, Training

LOSS_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Sum:
    """What a side needed for the first jobs: real tokens per second and per processor second, peak memory, losses."""

    rate: float
    per_processor: float
    peak: int
    losses: list[list[float]]


@dataclass
class Row:
    """A peer and Loray on the same number of jobs; one value per round.

    Attributes:
        lengths: Of the samples: "equal" or "mixed".
        peer: Its name.
        pads_nothing: Whether it puts samples side by side, as Loray does.
        same_steps: Whether its optimizer steps are made of the same samples; if not, means of losses are compared.
        jobs: How many; Loray trains them together.
        theirs, ours: Real tokens per second.
        processor: Real tokens per processor second, Loray's over the peer's.
        their_peak, our_peak: The most memory that the process had, in bytes.
        loss: How far the losses are apart: the largest difference of any step, or of the jobs' means.
        failure: Why the peer could not train them; there is nothing to compare then.
    """

    lengths: str
    peer: str
    pads_nothing: bool
    same_steps: bool
    jobs: int
    theirs: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    their_peak: int = 0
    our_peak: int = 0
    loss: float = 0.0
    failure: str | None = None

    def add(self, theirs: Sum | SideFailed, ours: Sum) -> None:
        """One round more; a peer that failed in any round has no figures."""
        self.ours.append(ours.rate)
        self.our_peak = max(self.our_peak, ours.peak)
        if isinstance(theirs, SideFailed):
            self.failure = theirs.reason
            return
        self.theirs.append(theirs.rate)
        self.processor.append(ours.per_processor / theirs.per_processor)
        self.their_peak = max(self.their_peak, theirs.peak)
        self.loss = max(self.loss, _apart(theirs.losses, ours.losses, by_step=self.same_steps))

    @property
    def ratios(self) -> list[float]:
        """Loray's speed over the peer's, round by round."""
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def speed(self) -> float:
        """The median of the ratios."""
        return median(self.ratios)

    @property
    def tokens_per_second(self) -> float:
        """The peer's, the median of the rounds."""
        return median(self.theirs)

    @property
    def memory(self) -> float:
        """Loray's peak over the peer's."""
        return self.our_peak / self.their_peak

    @property
    def equal_work(self) -> bool:
        """Whether both trained on the same steps and lost the same."""
        return self.same_steps and self.loss <= LOSS_TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        if self.failure is not None:
            return vars(self)
        return {
            **vars(self),
            "speed": self.speed,
            "speed_of_processor": median(self.processor),
            "memory": self.memory,
            "equal_work": self.equal_work,
        }


def sums(pieces: Sequence[Training], tokens: Sequence[int], counts: Sequence[int]) -> dict[int, Sum]:
    """Of jobs that were trained one after another, what the first of them took."""
    found = {}
    for count in counts:
        done = pieces[:count]
        trained = sum(tokens[:count])
        rate = trained / sum(piece.seconds for piece in done)
        per_processor = trained / sum(piece.processor for piece in done)
        found[count] = Sum(rate, per_processor, max(piece.peak for piece in done), [piece.losses[0] for piece in done])
    return found


def sum_together(piece: Training, tokens: Sequence[int]) -> Sum:
    """Of jobs that were trained together."""
    trained = sum(tokens[: len(piece.losses)])
    return Sum(trained / piece.seconds, trained / piece.processor, piece.peak, piece.losses)


def _apart(theirs: Sequence[Sequence[float]], ours: Sequence[Sequence[float]], *, by_step: bool) -> float:
    pairs = list(zip(theirs, ours, strict=True))
    if not by_step:
        return max(abs(fmean(one) - fmean(other)) for one, other in pairs)
    return max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))


def remarks(row: Row) -> list[str]:
    """Why Loray is not ahead, where it is not; and where the peer did other work."""
    found = []
    if row.failure is not None:
        return [f"the peer could not train so many: {row.failure}"]
    if row.speed < 1.0 and (row.pads_nothing or row.lengths == "equal"):
        found.append("no padding to leave out: both make the same products, and one job alone keeps a CPU busy")
    elif row.speed < 1.0:
        found.append("slower, and no reason is known: look at the machine's load")
    if row.memory > 1.0:
        found.append(
            "the peer trains one job at a time, so one adapter and one batch are in its memory; all jobs at the "
            "same time are compared below"
        )
    if not row.same_steps:
        found.append("the peer puts other samples into its steps; the means of the losses are compared")
    elif not row.equal_work:
        found.append(f"the peer's losses are not those of its samples (apart by more than {LOSS_TOLERANCE:g})")
    return found
