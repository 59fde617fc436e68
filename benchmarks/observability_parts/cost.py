"""What watching costs those who train: the same jobs with every window open and with none, in turn, on one actor."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import psutil
from common import workload
from common.watch import Watch

from observability_parts.served import Served, wait_until
from orchestrator.jobs.states import TERMINAL

JOBS = 4
_LOOK_S, _SCRAPE_S, _PAGE_S = 0.2, 5.0, 15.0
_TRAINING, _TRACKERS, _TOP = "training", "trackers", "loray top"
_KINDS = {"ray::GpuActor": _TRAINING, "ray::Controller": "the orchestrator", "ray::TrackerProcess": _TRACKERS}


@dataclass(frozen=True)
class Side:
    """What the jobs did from the first row of the one that began last to the last row of all.

    Attributes:
        seconds: How long that was.
        tokens: Real tokens of the optimizer steps in it.
        thread: Processor seconds of the thread that makes the steps.
        processor: Of each kind of process.
        losses: Of every row of every job.
    """

    seconds: float
    tokens: int
    thread: float
    processor: dict[str, float]
    losses: list[list[float]]


@dataclass(frozen=True)
class Cost:
    """The watched runs over the unwatched ones, pair by pair.

    Attributes:
        rates: Ratios of real tokens per second.
        threads: Of real tokens per processor second of the thread that makes the steps.
        processes: Of real tokens per processor second of the process that trains.
        rates_apart: How far two unwatched runs that follow each other are apart in tokens per second; the mean of all.
        threads_apart: The same per processor second of the thread.
        beside: Cores that each kind of process takes more while somebody watches.
        equal: Whether all runs made the same losses.
    """

    rates: list[float]
    threads: list[float]
    processes: list[float]
    rates_apart: float
    threads_apart: float
    beside: dict[str, float]
    equal: bool

    @property
    def of_throughput(self) -> float:
        """The share of the tokens per second that watching costs; negative where the watched runs were faster."""
        return 1 - median(self.rates)

    @property
    def of_thread(self) -> float:
        """The share of the processor seconds of the steps' thread that watching costs."""
        return 1 - median(self.threads)


def measure(
    served: Served,
    base: str,
    vocabulary: int,
    steps: int,
    rounds: int,
    logging: int,
    tell: Callable[[str], None],
) -> Cost:
    """Run both sides in turn; who begins changes from round to round."""
    sides: dict[bool, list[Side]] = {True: [], False: []}
    for number in range(rounds):
        for watched in (number % 2 == 0, number % 2 != 0):
            tell(f"what it costs, round {number + 1} of {rounds}: {'watched' if watched else 'unwatched'}")
            folder = served.folder / f"cost-{number}-{watched}"
            sides[watched].append(_run(served, folder, base, vocabulary, steps, logging, watched=watched))
    pairs = list(zip(sides[True], sides[False], strict=True))
    kinds = {kind for one in sides[True] for kind in one.processor} - {_TRAINING}
    return Cost(
        [(on.tokens / on.seconds) / (off.tokens / off.seconds) for on, off in pairs],
        [(on.tokens / on.thread) / (off.tokens / off.thread) for on, off in pairs],
        [(on.tokens / on.processor[_TRAINING]) / (off.tokens / off.processor[_TRAINING]) for on, off in pairs],
        _apart([one.tokens / one.seconds for one in sides[False]]),
        _apart([one.tokens / one.thread for one in sides[False]]),
        {kind: median(_cores(on, kind) - _cores(off, kind) for on, off in pairs) for kind in sorted(kinds)},
        all(on.losses == off.losses == pairs[0][0].losses for on, off in pairs),
    )


def _apart(values: Sequence[float]) -> float:
    return mean(abs(after / before - 1) for before, after in pairwise(values)) if len(values) > 1 else 0.0


def _cores(side: Side, kind: str) -> float:
    return side.processor.get(kind, 0.0) / side.seconds


def _run(served: Served, folder: Path, base: str, vocabulary: int, steps: int, logging: int, *, watched: bool) -> Side:
    """Train the jobs, with every window open or with none."""
    jobs = workload.make_jobs(folder, vocabulary, range(JOBS), steps)
    documents: list[dict[str, Any]] = []
    for job in jobs:
        fields = job.spec.model_dump(mode="json", exclude={"job_id"}, exclude_unset=True)
        fields["training"]["logging_steps"] = logging
        name = f"{folder.name}-{job.spec.name}"
        fields |= {"name": name, "base_model": base, "report_to": served.trackers if watched else []}
        documents.append(fields)
    watch = Watch(_kind, threads_of=_TRAINING)
    with contextlib.ExitStack() as stack:
        if watched:
            stack.enter_context(_windows(served))
        stack.enter_context(_looking(watch))
        served.submit(*documents)
        names = [document["name"] for document in documents]
        wait_until(lambda: all(served.jobs()[name]["state"] in TERMINAL for name in names), "the jobs are over", 1.0)
    return _side([Path(job.spec.output_dir) for job in jobs], watch)


def _kind(line: Sequence[str]) -> str:
    first = line[0] if line else ""
    for start, kind in _KINDS.items():
        if first.startswith(start):
            return kind
    if "wandb" in " ".join(line):  # its core is a program of its own
        return _TRACKERS
    if "orchestrator" in line:
        return _TOP if line[-1] == "top" else "other commands"
    return "Ray"


@contextlib.contextmanager
def _looking(watch: Watch) -> Iterator[None]:
    own = psutil.Process()  # its children are the cluster, and `loray top`
    with _repeated(lambda: watch.look(own.children()), _LOOK_S):
        yield


@contextlib.contextmanager
def _windows(served: Served) -> Iterator[None]:
    with served.top(), _repeated(served.scrape, _SCRAPE_S), _repeated(served.report_page, _PAGE_S):
        yield


@contextlib.contextmanager
def _repeated(what: Any, seconds: float) -> Iterator[None]:
    """Call something again and again in a thread."""
    over, errors = threading.Event(), list[Exception]()

    def go_on() -> None:
        while not over.is_set():
            began = time.monotonic()
            try:
                what()
            except Exception as error:  # told where the result is made
                errors.append(error)
                return
            over.wait(max(0.0, seconds - (time.monotonic() - began)))

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)
    if errors:
        raise errors[0]


def _side(outputs: Sequence[Path], watch: Watch) -> Side:
    rows = [[json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()] for out in outputs]
    firsts, lasts = [one[0]["time"] for one in rows], [one[-1]["time"] for one in rows]
    start, end = max(firsts) if max(firsts) < min(lasts) else min(firsts), max(lasts)
    tokens = 0.0
    for one in rows:  # a row has the tokens of its own step, for those since the row before
        for before, row in zip([{"step": 0}, *one], one, strict=False):
            tokens += row["tokens"] * (row["step"] - before["step"]) * (start < row["time"] <= end)
    losses = [[row["loss"] for row in one] for one in rows]
    return Side(end - start, round(tokens), watch.busiest_thread(start, end), watch.between(start, end), losses)
