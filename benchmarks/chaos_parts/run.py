"""One run: jobs come as long as faults do; who recovers when, and what is left in the end."""

from __future__ import annotations

import json
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_actor.model.base_model import BaseModel
from gpu_actor.paths import file_names
from orchestrator.jobs.job import JobSpec

from . import faults
from .cluster import Cluster
from .jobs import make, save_base, train_alone

_PATIENCE_S = 600.0
_LOOK_S = 0.2
_KEPT = {
    file_names.ADAPTER_CONFIG,
    file_names.ADAPTER_WEIGHTS,
    file_names.CHECKSUMS,
    file_names.JOB,
    file_names.METRICS,
}  # of a finished job


@dataclass(frozen=True)
class Size:
    """How much of everything there is.

    Attributes:
        steps: Least and most optimizer steps of a job.
        live: Jobs that train or wait at a time.
        longest: Seconds that a fault lasts at most.
    """

    steps: tuple[int, int]
    live: int
    longest: float


@dataclass
class Result:
    """What a run has shown.

    Attributes:
        faults: How many there were, by kind.
        recoveries: Seconds from each group of faults until all jobs that it met had come further.
        redone: Optimizer steps that were lost, and made again.
        lost: Jobs that were accepted and did not succeed, with their states.
        charged: Jobs that were charged with a death.
        differing: Jobs whose adapters, or rows of metrics, are not those of the job alone.
        files: Left in output folders.
        processes: That outlived the cluster.
        stories: Of the jobs that are named above, what happened to them.
    """

    seed: int
    faults: dict[str, int] = field(default_factory=dict)
    jobs: int = 0
    recoveries: list[float] = field(default_factory=list)
    redone: int = 0
    lost: list[str] = field(default_factory=list)
    charged: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    stories: dict[str, list[str]] = field(default_factory=dict)


class Run:
    """Jobs on a cluster that is harmed."""

    def __init__(self, cluster: Cluster, base: str, seed: int, size: Size, tell: Callable[[str], None]) -> None:
        self._cluster, self._base, self._seed, self._size, self._tell = cluster, base, seed, size, tell
        self._draw = random.Random(f"run {seed}")
        self.specs: list[JobSpec] = []
        self.emptied: set[str] = set()  # jobs whose output folders were deleted
        self.result = Result(seed)
        self._reached: dict[str, int] = {}
        self._stories: dict[str, list[str]] = {}
        self._prepare_next()

    # -- jobs ----------------------------------------------------------------------------------------------------

    def _prepare_next(self) -> None:
        number = len(self.specs)
        cluster = self._cluster
        self._next = make(number, self._seed, self._base, cluster.folder, cluster.outputs, self._size.steps)
        self._request_id = f"request {number}"
        fields = {"jobs": [self._next.model_dump(mode="json")], "request_id": self._request_id}
        cluster.next_request = json.dumps(fields).encode()

    def _submit_next(self) -> None:
        ids = self._cluster.submit([self._next], self._request_id)
        if self._draw.random() < 0.2 and self._cluster.submit([self._next], self._request_id) != ids:
            self.result.lost.append(f"{self._next.name}: the same request made two jobs")
        self.specs.append(self._next)
        self._prepare_next()

    def _look(self) -> dict[str, Mapping[str, Any]]:
        """All jobs by name, and how many steps they have lost since the latest look."""
        jobs = {job["name"]: job for job in self._cluster.call("list_jobs")}
        for name, job in jobs.items():
            step = int(job["step"] or 0)
            self.result.redone += max(0, self._reached.get(name, 0) - step)
            self._reached[name] = step
        return jobs

    def _wait(self, what: str, until: Callable[[dict[str, Mapping[str, Any]]], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not until(jobs := self._look()):
            if time.monotonic() > deadline:
                open_jobs = [
                    {key: job[key] for key in ("name", "state", "step", "waiting_for", "unsaved", "actor")}
                    for job in jobs.values()
                    if not job["finished_at"]
                ]
                raise RuntimeError(f"not within {_PATIENCE_S:.0f} s: {what}: {open_jobs}")
            time.sleep(_LOOK_S)

    def _in_training(self) -> dict[str, Mapping[str, Any]]:
        """The jobs that train, once there are some; enough are live."""
        while True:
            live = sum(not job["finished_at"] for job in self._look().values())
            for _ in range(self._size.live - live):
                self._submit_next()
            self._wait("a job trains", lambda jobs: any(_trains(job) for job in jobs.values()))
            time.sleep(self._draw.uniform(0.0, 1.0))
            if found := {name: job for name, job in self._look().items() if _trains(job)}:
                return found

    # -- faults --------------------------------------------------------------------------------------------------

    def suffer(self, group: list[faults.Fault]) -> list[faults.Fault]:
        """Let some faults happen at once, and wait until every job that they met has come further.

        Returns:
            Those that found nothing to harm.
        """
        before = self._in_training()
        began, harms, missed = time.monotonic(), [], []
        for fault in group:
            harm = fault(self._cluster, self._draw, list(before.values()))
            if harm is None:
                missed.append(fault)
                continue
            harms.append(harm)
            self.emptied |= set(harm.emptied)
            kind = faults.name_of(fault)
            self.result.faults[kind] = self.result.faults.get(kind, 0) + 1
        if not harms:
            return missed
        time.sleep(self._draw.uniform(0.2, self._size.longest))
        for harm in reversed(harms):
            if harm.undo is not None:
                harm.undo()
        words = " and ".join(harm.words for harm in harms)

        def recovered(jobs: dict[str, Mapping[str, Any]]) -> bool:
            return all(_is_past(jobs[name], job) for name, job in before.items())

        self._wait(f"{', '.join(before)} go on after {words}", recovered)
        self.result.recoveries.append(time.monotonic() - began)
        self._tell(f"{self.result.recoveries[-1]:6.1f} s  {words}")
        return missed

    # -- the end -------------------------------------------------------------------------------------------------

    def finish(self, least_jobs: int) -> None:
        """Let every job end, at least so many."""
        while len(self.specs) < least_jobs:
            self._submit_next()
        self._wait("all jobs end", lambda jobs: all(job["finished_at"] for job in jobs.values()))
        jobs = self._look()
        self.result.jobs = len(jobs)
        for name, job in jobs.items():
            told = self._cluster.call("events", job["id"])
            self._stories[name] = [f"{event['time']:.1f} {event['message']}" for event in told]
        for spec in self.specs:
            job = jobs.get(spec.name)
            state = "unknown" if job is None else f"{job['state']} {job['reason'] or ''}"
            if job is None or job["state"] != "SUCCEEDED":
                self.result.lost.append(f"{spec.name}: {state}")
            elif job["retries"]:
                self.result.charged.append(spec.name)
        if strangers := jobs.keys() - {spec.name for spec in self.specs}:
            self.result.lost.append(f"jobs of nobody: {sorted(strangers)}")

    def compare(self) -> None:
        """Train every job alone, and compare; look for files that are left. Before the outputs are unmounted."""
        base = BaseModel.load(self._base)
        for spec in self.specs:
            alone = self._cluster.folder / "alone" / spec.name
            train_alone(base, spec, alone)
            here = Path(spec.output_dir)
            with_rows = spec.name not in self.emptied  # else those before are gone
            if difference := _difference(_contents(here, rows=with_rows), _contents(alone, rows=with_rows)):
                self.result.differing.append(f"{spec.name}: {difference}")
        kept = {Path(spec.output_dir) / name for spec in self.specs for name in _KEPT}
        found = (path for path in self._cluster.outputs.rglob("*") if not path.is_dir())
        self.result.files = sorted(str(path.relative_to(self._cluster.outputs)) for path in found if path not in kept)
        named = {line.partition(":")[0] for line in [*self.result.lost, *self.result.charged, *self.result.differing]}
        self.result.stories = {name: story for name, story in self._stories.items() if name in named}


def _trains(job: Mapping[str, Any]) -> bool:
    return job["state"] == "RUNNING" and bool(job["step"])


def _is_past(now: Mapping[str, Any], then: Mapping[str, Any]) -> bool:
    return bool(now["finished_at"]) or (now["state"] == "RUNNING" and now["step"] > then["step"])


def _contents(folder: Path, *, rows: bool) -> Any:
    """The adapter of a job byte by byte, and its rows of metrics without the time; None: it is not there."""
    try:
        weights = (folder / file_names.ADAPTER_WEIGHTS).read_bytes()
        lines = (folder / file_names.METRICS).read_text("utf-8").splitlines() if rows else ()
    except OSError:
        return None
    return weights, [{name: value for name, value in json.loads(line).items() if name != "time"} for line in lines]


def _difference(here: Any, alone: Any) -> str:
    """In words; empty: there is none."""
    if here is None or here == alone:
        return "" if here == alone else "not whole"
    differences = ["its adapter"] if here[0] != alone[0] else []
    if here[1] != alone[1]:
        steps = [[row["step"] for row in rows] for rows in (here[1], alone[1])]
        first = next((n for n, (one, other) in enumerate(zip(here[1], alone[1], strict=False)) if one != other), None)
        where = "" if first is None else f", the first that differs: {here[1][first]} for {alone[1][first]}"
        differences.append(f"its rows of metrics: {len(steps[0])} for {len(steps[1])}{where}")
    return " and ".join(differences)


def run(seed: int, count: int, least_jobs: int, size: Size, tell: Callable[[str], None]) -> Result:
    """A whole run in a folder of its own.

    Args:
        seed: All random choices follow from it; what they meet depends on time as well.
        count: Faults.
        least_jobs: How many jobs there are at least.
        size: Of the jobs and the faults.
        tell: Takes a line for each group of faults.
    """
    import tempfile

    with tempfile.TemporaryDirectory(prefix="lc", dir="/tmp", ignore_cleanup_errors=True) as name:
        base = save_base(Path(name) / "base")
        with Cluster(Path(name)) as cluster:
            one = Run(cluster, base, seed, size, tell)
            groups = deque(faults.plan(seed, count))
            for _ in range(2 * len(groups)):
                if groups and (missed := one.suffer(groups.popleft())):
                    groups.append(missed)  # later there may be something to harm
            one.finish(least_jobs)
            cluster.stop()
            one.compare()
        one.result.processes = cluster.left()
    return one.result
