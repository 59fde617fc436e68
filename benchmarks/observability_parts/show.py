"""Eight jobs, one failing, one waiting, four of a grid, whose actor is killed once; and all that is seen of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from observability_parts.served import Served, wait_until
from orchestrator.jobs.states import TERMINAL

GRID, PLAIN, PAIRS, FAILING, WAITING = "grid", "plain", "pairs", "failing", "waiting"
_LOOK_STEP = 0.15  # share of a job after which it is looked at


@dataclass
class Seen:
    """What was seen.

    Attributes:
        verbs: By name, what a verb said and its exit code.
        top: Lines of `loray top` on a terminal.
        running: All jobs by name, and the cluster, when they were looked at.
        looked_at: When that was (Unix seconds).
        tasks: Rows of the dashboard's task table then.
        ended_tasks: In the end.
        actors: Rows of its page of actors.
        ray_jobs: Entry points of its page of jobs.
        jobs: All jobs by name, in the end.
        told: What `on_end` was told.
        pages: The report as a file and at the door.
        page_seconds: What making the file took.
    """

    verbs: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)
    top: list[str] = field(default_factory=list)
    running: dict[str, dict[str, Any]] = field(default_factory=dict)
    cluster: dict[str, Any] = field(default_factory=dict)
    looked_at: float = 0.0
    tasks: list[dict[str, Any]] = field(default_factory=list)
    ended_tasks: list[dict[str, Any]] = field(default_factory=list)
    actors: list[dict[str, Any]] = field(default_factory=list)
    ray_jobs: list[str] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    told: list[dict[str, Any]] = field(default_factory=list)
    pages: dict[str, str] = field(default_factory=dict)
    page_seconds: float = 0.0

    @property
    def started(self) -> dict[str, dict[str, Any]]:
        """The jobs that were on an actor."""
        return {name: job for name, job in self.jobs.items() if job["attempt"]}


def make_jobs(folder: Path, base: str, other: str, steps: int, logging: int) -> list[list[dict[str, Any]]]:
    """The eight, by what is submitted together.

    Args:
        folder: Of data and outputs.
        base: The base model of all but the one that waits.
        other: The base model of that one.
        steps: Optimizer steps of each.
        logging: Optimizer steps to a row.
    """
    _write(folder / "tokens.jsonl", [_sample(number) for number in range(32)])
    _write(folder / "pairs.jsonl", [_pair(number) for number in range(32)])
    (folder / "failing.jsonl").write_text(json.dumps(_sample(0)) + "\n{oops\n")

    def job(name: str, **changes: Any) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "name": name,
            "base_model": base,
            "dataset": {"path": str(folder / "tokens.jsonl"), "format": "tokens", "val_size": 0.25},
            "output_dir": str(folder / "out" / name),
            "training": {
                "max_steps": steps,
                "learning_rate": 1e-3,
                "per_device_train_batch_size": 2,
                "logging_steps": logging,
                "eval_steps": steps // 4,
                "save_steps": max(1, steps // 20),
            },
        }
        return fields | changes

    pairs = job(PAIRS, dataset={"path": str(folder / "pairs.jsonl"), "format": "preference"})
    pairs["training"] = pairs["training"] | {"objective": "dpo", "eval_steps": None}
    failing = job(FAILING, dataset={"path": str(folder / "failing.jsonl"), "format": "tokens"})
    failing["training"] = failing["training"] | {"eval_steps": None}
    waiting = job(WAITING, base_model=other, queue={"priority": -5})
    waiting["training"] = waiting["training"] | {"max_steps": 100 * steps}
    grid = job(GRID, grid={"lora.r": [4, 8], "training.learning_rate": [5e-4, 1e-3]})
    return [[grid], [job(PLAIN)], [pairs], [failing], [waiting]]


def show(served: Served, submissions: list[list[dict[str, Any]]], tell: Callable[[str], None]) -> Seen:
    """Let the jobs train, and look at them in every way while they do and when they are over."""
    seen = Seen()
    for jobs in submissions[:-1]:
        served.submit(*jobs)
    tell("eight jobs: until all that can train do")
    wait_until(lambda: _all_train(served), "all jobs train")
    tell("... their actor is killed")
    _kill_actor(served)
    wait_until(lambda: _all_train(served), "all jobs train again")
    served.submit(*submissions[-1])  # whose base model has no place any more
    wait_until(lambda: served.jobs()[WAITING]["waiting_for"], "one waits")
    tell("... they are looked at")
    _look_while_they_run(served, seen)
    tell("... until they end")
    _let_them_end(served, seen)
    return seen


def _all_train(served: Served) -> bool:
    """Whether every job that can has made some steps.

    Raises:
        RuntimeError: One is over already.
    """
    jobs = [job for name, job in served.jobs().items() if name not in (FAILING, WAITING)]
    for job in jobs:
        if job["state"] in TERMINAL:
            reason = job["reason"] or "give it more --steps"
            raise RuntimeError(f"{job['name']} is over before it was looked at: {job['state']}, {reason}")
    return all(job["state"] == "RUNNING" and job["step"] >= _LOOK_STEP * job["total_steps"] for job in jobs)


def _kill_actor(served: Served) -> None:
    before = {job["actor"] for job in served.jobs().values() if job["state"] == "RUNNING"}
    for process in psutil.Process(served.process.pid).children(recursive=True):
        if process.cmdline() and process.cmdline()[0].startswith("ray::GpuActor"):
            process.kill()
    wait_until(lambda: not before & {job["actor"] for job in served.jobs().values()}, "the actor is gone")


def _look_while_they_run(served: Served, seen: Seen) -> None:
    interrupted = served.home.start(*_wait_command(WAITING), log="interrupted")
    with served.top() as picture:
        wait_until(lambda: len(picture()) > 4, "loray top draws")
        seen.running, seen.cluster, seen.looked_at = served.jobs(), served.client.cluster(), time.time()
        seen.tasks, seen.actors = _tasks(served), _rows(served.dashboard("api/v0/actors?detail=1&limit=1000"))
        seen.top = picture()
    for name, arguments in {"list": ["list"], "show": ["show", PLAIN], "show waiting": ["show", WAITING]}.items():
        seen.verbs[name] = served.verb(*arguments)
    seen.verbs["ask"] = served.verb("ask", PLAIN, "hello", "--max-tokens", "4")  # for the metrics of answers
    seen.verbs["list --json"] = served.verb("list", "--json")
    seen.verbs["top"] = served.verb("top")
    seen.verbs["wait 124"] = served.verb("wait", WAITING, "--timeout", "0.5")
    os.killpg(interrupted.pid, signal.SIGINT)
    code = interrupted.wait(60)
    seen.verbs["wait 130"] = subprocess.CompletedProcess(["wait"], code, "", "")
    seen.ray_jobs = [job["entrypoint"] for job in served.dashboard("api/jobs/")]


def _wait_command(name: str) -> list[str]:
    from support.command import LORAY

    return [*LORAY, "wait", name]


def _tasks(served: Served) -> list[dict[str, Any]]:
    return _rows(served.dashboard("api/v0/tasks?detail=1&limit=10000"))


def _rows(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the dashboard's own pages make of an answer of the state API."""
    rows: list[dict[str, Any]] = answer["data"]["result"]["result"]
    return rows


def _let_them_end(served: Served, seen: Seen) -> None:
    trained = [name for name in served.jobs() if name not in (FAILING, WAITING)]
    seen.verbs["wait 0"] = served.verb("wait", *trained, timeout=3600)
    seen.verbs["wait 1"] = served.verb("wait", trained[0], FAILING)
    seen.verbs["wait 2"] = served.verb("wait", "nobody")
    seen.verbs["wait 3"] = served.verb("wait", PLAIN, LORAY_HOME=str(served.folder / "nothing"))
    served.verb("cancel", WAITING)
    seen.verbs["wait 4"] = served.verb("wait", WAITING)
    path = served.folder / "report.html"
    began = time.perf_counter()
    seen.verbs["report"] = served.verb("report", "-o", str(path))
    seen.page_seconds = time.perf_counter() - began
    seen.pages = {"loray report": path.read_text("utf-8") if path.exists() else "", "/report": served.report_page()}
    seen.jobs = served.jobs()
    wait_until(lambda: all(job["state"] in TERMINAL for job in served.jobs().values()), "all jobs are over")
    wait_until(lambda: len(served.told()) >= len(seen.jobs) + 2, "on_end was told of every end")
    seen.told = served.told()
    for job in seen.started.values():
        for tracker in served.trackers:
            file = Path(job["output_dir"]) / f"tracked-{tracker}.json"
            wait_until(lambda file=file: file.exists() and json.loads(file.read_text())["over"], f"{file} is over")
    seen.ended_tasks = wait_until(lambda: _all_over(_tasks(served)), "the dashboard shows the ends")


def _all_over(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ray tells its dashboard a second late."""
    return rows if rows and all(row["state"] in ("FINISHED", "FAILED") for row in rows) else []


def _sample(seed: int) -> dict[str, list[int]]:
    ids = [3 + (seed * 7 + place * (seed % 5 + 1)) % 120 for place in range(10 + seed % 14)]
    return {"input_ids": ids, "labels": [-100] * 4 + ids[4:]}


def _pair(seed: int) -> dict[str, list[int]]:
    row = {}
    for side, other in (("chosen", seed), ("rejected", seed + 1000)):
        ids = _sample(seed)["input_ids"][:4] + _sample(other)["input_ids"][4:]
        row |= {f"{side}_input_ids": ids, f"{side}_labels": [-100] * 4 + ids[4:]}
    return row


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
