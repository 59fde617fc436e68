"""Real tokens per second of both sides, in one process, taking turns on the same jobs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from . import loray_loop, peft_loop, workload

DROPOUT = 0.05


@dataclass
class SpeedRow:
    """Some jobs co-trained by Loray against the same jobs one after another with PEFT; one value per round each.

    Attributes:
        jobs: How many.
        dropout: Dropout of every one of them.
        padding: Share of padding in the tokens that PEFT computes.
        loray: Real tokens per second.
        peft: Real tokens per second.
    """

    jobs: int
    dropout: float
    padding: float = 0.0
    loray: list[float] = field(default_factory=list)
    peft: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Loray / PEFT, round by round."""
        return [ours / theirs for ours, theirs in zip(self.loray, self.peft, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        return {**vars(self), "ratios": self.ratios, "ratio": median(self.ratios)}


class SpeedTest:
    """Both base models, and the rows to fill.

    Attributes:
        rows: The results: one per number of jobs, and one with dropout.
        loss_difference: Largest difference of any optimizer step's loss between the two sides (without dropout).
    """

    def __init__(self, base: str, job_counts: Sequence[int], dropout_jobs: int, steps: int) -> None:
        self._ours = loray_loop.load_loray(base)
        self._theirs = peft_loop.load_plain(base)
        self._steps = steps
        self.loss_difference = 0.0
        self.rows = [*(SpeedRow(count, 0.0) for count in job_counts), SpeedRow(dropout_jobs, DROPOUT)]

    def run(self, rounds: int) -> Iterator[str]:
        """Measure; yields what comes next, for people who wait."""
        yield "warm-up"
        self._compare(SpeedRow(1, 0.0), {}, loray_first=False)
        for number in range(rounds):
            yield f"round {number + 1} of {rounds}"
            alone: dict[tuple[int, float], workload.Run] = {}
            for row in self.rows:
                self._compare(row, alone, loray_first=number % 2 == 1)

    def _compare(self, row: SpeedRow, alone: dict[tuple[int, float], workload.Run], *, loray_first: bool) -> None:
        """One round of one row; `alone` holds the PEFT runs of this round, which the larger rows take over."""
        with tempfile.TemporaryDirectory() as folder:
            vocabulary = self._ours.description.vocab_size
            jobs = workload.make_jobs(Path(folder), vocabulary, range(row.jobs), self._steps, row.dropout)
            row.padding = workload.padding_share(jobs)
            together = loray_loop.co_train(self._ours, jobs) if loray_first else None
            for number, job in enumerate(jobs):
                if (number, row.dropout) not in alone:
                    start = loray_loop.start_adapter(self._ours, job)
                    alone[number, row.dropout] = peft_loop.train_alone(self._theirs, job, start)
            together = together or loray_loop.co_train(self._ours, jobs)
        runs = [alone[number, row.dropout] for number in range(row.jobs)]
        row.loray.append(together.rate)
        row.peft.append(sum(run.tokens for run in runs) / sum(run.seconds for run in runs))
        if not row.dropout:
            pairs = [
                pair
                for ours, run in zip(together.losses, runs, strict=True)
                for pair in zip(ours, run.losses[0], strict=True)
            ]
            self.loss_difference = max([self.loss_difference, *(abs(ours - theirs) for ours, theirs in pairs)])
