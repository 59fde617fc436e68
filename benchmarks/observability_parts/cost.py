"""What watching costs those who train: jobs on one actor, while every window is opened and shut again and again.

A machine's speed drifts by more in minutes than watching can cost, so both sides take turns of seconds in one run.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import psutil
from common import workload
from common.watch import Watch

from observability_parts.served import Served, wait_until
from orchestrator.jobs.states import TERMINAL

JOBS = 4
_TURN_S = 10.0  # of each side; two watched ones follow each other: what is due every ten seconds comes twice
_EVERY_S = 10.0  # a scrape, as Ray's own configuration of Prometheus has it, and the page
_LEFT_OUT = 0.1  # of the units, at either end: seconds in which the machine's neighbours take more than we
# after the opening, when trackers and `loray top` begin: in life they all come when they come
_SCRAPE_AFTER_S, _PAGE_AFTER_S = 3.0, 7.0
_TRAINING, _TRACKERS, _TOP = "training", "trackers", "loray top"
_KINDS = {"ray::GpuActor": _TRAINING, "ray::Controller": "the orchestrator", "ray::TrackerProcess": _TRACKERS}


class Span(NamedTuple):
    """From when to when (Unix time) the windows were open or shut."""

    watched: bool
    begin: float
    end: float


@dataclass(frozen=True)
class Turns:
    """Two turns of one side, beside two of the other.

    Attributes:
        rate: Real tokens per second.
        per_thread: Real tokens per processor second of the thread that makes the steps.
        waited: Share of the time for which that thread could have run and had no core; None where nobody counts it.
        cores: That each kind of process took.
    """

    rate: float
    per_thread: float
    waited: float | None
    cores: dict[str, float]


class Unit(NamedTuple):
    """Four turns in a row: watched, not, not, watched, or the other way round; so the machine's drift falls out."""

    on: Turns
    off: Turns


@dataclass(frozen=True)
class Cost:
    """The watched turns over the unwatched ones between or around them, by units of four turns.

    Attributes:
        rates: Ratios of real tokens per second.
        threads: Of real tokens per processor second of the thread that makes the steps.
        waits: Share of the time for which that thread has no core, watched less unwatched; none where nobody counts it.
        beside: Cores that each kind of process takes more while somebody watches. Trackers make good what they
            missed, so theirs are the mean over watched and unwatched turns (which halves what they take at rest).
        equal: Whether all runs made the same losses.
    """

    rates: list[float]
    threads: list[float]
    waits: list[float]
    beside: dict[str, float]
    equal: bool


Estimate = Callable[[Sequence[float]], tuple[float, float]]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and twice its standard error; infinite where that cannot be told."""
    if len(values) < 2:
        return math.nan, math.inf
    return mean(values), 2 * stdev(values) / math.sqrt(len(values))


def trimmed_mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Likewise of the middle four fifths, which few wild values hardly change.

    The error is that of Tukey and McLaughlin (1963): by the winsorized variance, in which those that are left out are
    as far off as the farthest of the others.
    """
    cut = int(len(values) * _LEFT_OUT)
    if not cut:
        return mean_and_error(values)
    kept = sorted(values)[cut:-cut]
    winsorized = np.clip(values, kept[0], kept[-1])
    return mean(kept), 2 * float(winsorized.std(ddof=1)) * math.sqrt(len(values)) / len(kept)


def share_lost(ratios: Sequence[float], estimate: Estimate = trimmed_mean_and_error) -> tuple[float, float]:
    """The share that watching costs by some ratios (their geometric mean), and twice its standard error."""
    log, error = estimate([math.log(ratio) for ratio in ratios])
    return 1 - math.exp(log), error


def measure(
    served: Served, base: str, vocabulary: int, steps: int, rounds: int, logging: int, tell: Callable[[str], None]
) -> Cost:
    """Train the same jobs `rounds` times; in every other run the unwatched side begins."""
    units: list[Unit] = []
    losses = []
    for number in range(rounds):
        tell(f"what it costs, round {number + 1} of {rounds}: every window opened and shut every {_TURN_S:.0f} s")
        found, made = _run(served, number, base, vocabulary, steps, logging)
        losses.append(made)
        units += found
    return Cost(
        [on.rate / off.rate for on, off in units],
        [on.per_thread / off.per_thread for on, off in units],
        [on.waited - off.waited for on, off in units if on.waited is not None and off.waited is not None],
        _beside(units),
        all(one == losses[0] for one in losses),
    )


def _beside(units: Sequence[Unit]) -> dict[str, float]:
    kinds = {kind for unit in units for kind in unit.on.cores} - {_TRAINING}
    cores: dict[str, float] = {}
    for kind in sorted(kinds):
        both = [(on.cores.get(kind, 0.0), off.cores.get(kind, 0.0)) for on, off in units]
        cores[kind] = mean((on + off) / 2 if kind == _TRACKERS else on - off for on, off in both)
    return cores


def _run(
    served: Served, number: int, base: str, vocabulary: int, steps: int, logging: int
) -> tuple[list[Unit], list[list[float]]]:
    """Train the jobs once; returns what was measured, and the losses of all rows of all jobs."""
    # all samples as long as each other: how many tokens a second makes hangs on how long they are
    jobs = workload.make_jobs(served.folder / f"cost-{number}", vocabulary, range(JOBS), steps, equal=True)
    documents: list[dict[str, Any]] = []
    for job in jobs:
        fields = job.spec.model_dump(mode="json", exclude={"job_id"}, exclude_unset=True)
        # of one sample each: a row comes every half second
        batch = {"per_device_train_batch_size": 1, "max_steps": steps * workload.BATCH_SIZE, "logging_steps": logging}
        # no checkpoint before the end: it takes as long as a step or two, on whichever side it falls
        fields["training"] |= {**batch, "save_steps": steps * workload.BATCH_SIZE}
        documents.append({**fields, "name": f"cost-{number}-{job.spec.name}", "base_model": base})
    watch, outputs = Watch(_kind, threads_of=_TRAINING), [Path(job.spec.output_dir) for job in jobs]
    with _Windows(served) as windows:
        windows.set(True)
        served.submit(*documents)
        wait_until(lambda: _begun(served, outputs), "rows of each job, and every tracker to have some", 1.0)
        turns = _take_turns(served, windows, watch, [document["name"] for document in documents], number)
        windows.set(True)
        wait_until(lambda: _over(served, outputs), "every tracker to end its runs", 1.0)
    rows = [[json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()] for out in outputs]
    end = min(one[-1]["time"] for one in rows)  # all of them train
    units = []
    for four in zip(*(turns[first::4] for first in range(4)), strict=False):
        if four[-1].end <= end:
            on, off = (_turns([one for one in four if one.watched is side], rows, watch) for side in (True, False))
            units.append(Unit(on, off))
    return units, [[row["loss"] for row in one] for one in rows]


def _begun(served: Served, outputs: Sequence[Path]) -> bool:
    """Whether each job has trained, and every tracker has begun a run of it."""
    rows = [out / "metrics.jsonl" for out in outputs]
    return all(one.exists() and one.stat().st_size for one in rows) and all(map(Path.exists, _sent(served, outputs)))


def _over(served: Served, outputs: Sequence[Path]) -> bool:
    """Whether every tracker was told the end of each job."""
    return all(json.loads(one.read_text())["over"] for one in _sent(served, outputs))


def _sent(served: Served, outputs: Sequence[Path]) -> list[Path]:
    return [out / f"tracked-{tracker}.json" for out in outputs for tracker in served.trackers]


def _take_turns(served: Served, windows: _Windows, watch: Watch, names: Sequence[str], number: int) -> list[Span]:
    """Open and shut the windows until the jobs are over: open, shut, shut, open, open, ..., or the other way round."""
    turns: list[Span] = []
    own = psutil.Process()  # its children are the cluster, and `loray top`
    while not all(served.jobs()[name]["state"] in TERMINAL for name in names):
        watched = (len(turns) + 1) // 2 % 2 == number % 2
        watch.look(own.children())
        begin = time.time()
        windows.set(watched)
        time.sleep(_TURN_S)
        turns.append(Span(watched, begin, time.time()))
    watch.look(own.children())
    return turns


def _turns(spans: Sequence[Span], rows: Sequence[Sequence[dict[str, Any]]], watch: Watch) -> Turns:
    seconds = sum(span.end - span.begin for span in spans)
    tokens, spent, waited = 0.0, 0.0, list[float]()
    cores: Counter[str] = Counter()
    for span in spans:
        between = span.begin, span.end
        tokens += sum(_tokens(one, *between) for one in rows)
        cores.update({kind: took / seconds for kind, took in watch.between(*between).items()})
        took, without = watch.busiest_thread(*between)
        spent += took
        waited += [] if without is None else [without]
    share = sum(waited) / seconds if len(waited) == len(spans) else None
    return Turns(tokens / seconds, tokens / spent, share, dict(cores))


def _tokens(rows: Sequence[dict[str, Any]], begin: float, end: float) -> float:
    """Real tokens of one job between two moments. A row has those of its own step, for all since the row before."""
    steps = np.diff([0, *(row["step"] for row in rows)])
    sums = np.cumsum([row["tokens"] * count for row, count in zip(rows, steps, strict=True)])
    at = np.interp([begin, end], [row["time"] for row in rows], sums)
    return float(at[1] - at[0])


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


class _Windows(contextlib.ExitStack):
    """Everything through which people watch. What is shut has stopped; trackers make good later what they missed."""

    def __init__(self, served: Served) -> None:
        super().__init__()
        self._served, self._open = served, threading.Event()

    def __enter__(self) -> _Windows:
        super().__enter__()
        self.enter_context(self._served.top())
        self.enter_context(_repeated(self._served.scrape, _SCRAPE_AFTER_S, self._open))
        self.enter_context(_repeated(self._served.report_page, _PAGE_AFTER_S, self._open))
        self.callback(self.set, True)  # who has stopped cannot end
        return self

    def set(self, watched: bool) -> None:
        """Open or shut all of them."""
        (self._open.set if watched else self._open.clear)()
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if _kind(process.cmdline()) in (_TOP, _TRACKERS):
                    process.send_signal(signal.SIGCONT if watched else signal.SIGSTOP)


@contextlib.contextmanager
def _repeated(what: Callable[[], object], after: float, open_: threading.Event) -> Iterator[None]:
    """Call something every ten seconds in a thread, beginning some seconds after each time that an event is set.

    At the end the event has to be set.
    """
    over, errors = threading.Event(), list[Exception]()

    def go_on() -> None:
        while not over.is_set():
            if not open_.is_set():
                open_.wait()
                if over.wait(after) or not open_.is_set():
                    continue
            began = time.monotonic()
            try:
                what()
            except Exception as error:  # told where the result is made
                errors.append(error)
                return
            over.wait(max(0.0, _EVERY_S - (time.monotonic() - began)))

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)
    if errors:
        raise errors[0]
