"""What was promised of watching, and whether that is what was seen."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from observability_parts.served import PACKAGES, WIDTH, Served, widest
from observability_parts.show import FAILING, PLAIN, WAITING, Seen
from orchestrator.reporting.grafana import queries
from orchestrator.reporting.metric_list import METRICS
from support import tracker_runs

_NOT_HERE = ("loray_actor_out_of_memory",)  # of the metrics: no memory runs out in a run like this
_DATA_ERROR = "failing.jsonl:2"
_ENDS = {"SUCCEEDED": ("SUCCEEDED", "FINISHED"), "FAILED": ("FAILED",), "CANCELLED": ("CANCELLED", "KILLED")}
_CODES = {
    "0": "all succeeded",
    "1": "some failed",
    "2": "unknown",
    "3": "no cluster",
    "4": "cancelled",
    "124": "the time was up",
    "130": "Ctrl-C",
}


@dataclass(frozen=True)
class Promise:
    """One line of the result.

    Attributes:
        what: That was promised.
        kept: Whether it was seen; None: it could not be looked at here.
        figure: What was seen.
    """

    what: str
    kept: bool | None
    figure: str


def promises(served: Served, seen: Seen, server: Any) -> Iterator[Promise]:
    """Judge all that was seen.

    Args:
        served: The cluster, which still runs.
        seen: What was seen of it.
        server: A Prometheus that scrapes it; None: there is none here, and what it would scrape is read instead.
    """
    for tracker in PACKAGES:
        yield _tracker(served, seen, tracker)
    yield from _pages(seen)
    yield from _dashboard(seen)
    yield from _metrics(served, seen, server)
    yield from _terminal(seen)
    yield _on_end(seen)
    yield _forecast(seen)
    yield _wait(seen)


# -- trackers --------------------------------------------------------------------------------------------------------


def _tracker(served: Served, seen: Seen, tracker: str) -> Promise:
    what = f"{tracker}: one run per job, every row once, settings and end"
    if tracker not in served.trackers:
        return Promise(what, None, f"{PACKAGES[tracker]} is not installed")
    jobs = seen.started.values()
    if tracker == "tensorboard":  # a folder of each job's own
        by_job = {job["id"]: tracker_runs.tensorboard(None, Path(job["output_dir"])) for job in jobs}
    else:
        runs = getattr(tracker_runs, tracker)(served.home.storage, None)
        by_job = {job["id"]: {run: tags for run, tags in runs.items() if job["id"] in run} for job in jobs}
    wrong, rows = [], 0
    for job in jobs:
        problem, count = _run_problem(job, list(by_job[job["id"]].values()))
        rows += count
        wrong += [f"{job['name']}: {problem}"] if problem else []
    count = sum(map(len, by_job.values()))
    figure = f"{count} runs of {len(jobs)} jobs, {rows} rows, none doubled, none missing"
    return Promise(what, not wrong, "; ".join(wrong) or figure)


def _run_problem(job: Mapping[str, Any], runs: list[Mapping[str, Any]]) -> tuple[str, int]:
    """What is wrong with the runs of a job, in words, and how many rows they should have."""
    expected: dict[str, list[int]] = {}
    file = Path(job["output_dir"]) / "metrics.jsonl"
    for row in map(json.loads, file.read_text("utf-8").splitlines() if file.exists() else ()):
        for name in ("eval/loss",) if "eval_loss" in row else ("train/loss", "train/grad_norm", "train/learning_rate"):
            expected.setdefault(name, []).append(row["step"])
        if "rewards/margins" in row:
            expected.setdefault("train/rewards/margins", []).append(row["step"])
    count = sum(len(steps) for name, steps in expected.items() if name.endswith("/loss"))
    if len(runs) != 1:
        return f"{len(runs)} runs", count
    for name, steps in expected.items():
        got = sorted(step for step, _ in runs[0].get(name, ()))
        if got != sorted(steps):
            doubled, lacking = len(got) - len(set(got)), len(set(steps) - set(got))
            return f"{name}: {doubled} of {len(steps)} doubled, {lacking} missing", count
    state = runs[0].get("state", [None])[-1]
    state = str(state[1] if isinstance(state, tuple) else state)
    return "" if state.startswith(_ENDS[job["state"]]) else f"ended as {state}, not {job['state']}", count


# -- pages -----------------------------------------------------------------------------------------------------------


def _pages(seen: Seen) -> Iterator[Promise]:
    for name, page in seen.pages.items():
        lacking = [job for job in seen.jobs if job not in page]
        lacking += [] if _DATA_ERROR in page else ["why one failed"]
        loads = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page)
        took = f", {seen.page_seconds:.1f} s" if name == "loray report" else ""
        figure = f"{len(seen.jobs)} jobs, {len(page) / 2**20:.1f} MiB{took}, nothing loaded"
        wrong = [f"without {', '.join(lacking)}"] * bool(lacking) + [f"loads {loads}"] * bool(loads)
        yield Promise(f"{name}: one page with every job, that loads nothing", not wrong, "; ".join(wrong) or figure)


def _dashboard(seen: Seen) -> Iterator[Promise]:
    expected = {}
    for name, job in seen.running.items():
        state = {"QUEUED": "PENDING_ARGS_AVAIL", "SUCCEEDED": "FINISHED"}.get(job["state"], job["state"])
        expected[name] = "FAILED" if state == "CANCELLED" else state
    shown = {_job_of(row["name"]): row["state"] for row in seen.tasks}
    others = [row["name"] for row in seen.tasks if not row["name"].startswith("lora[")]
    figure = f"{dict(Counter(shown.values()))}, {len(others)} other rows"
    yield Promise("Ray's dashboard: a row for each job, queued ones too, and no other", shown == expected, figure)
    errors = {_job_of(row["name"]): row.get("error_message") or "" for row in seen.ended_tasks}
    yield Promise("... and its error", _DATA_ERROR in errors.get(FAILING, ""), errors.get(FAILING, "").strip()[-60:])
    names = [row["name"] for row in seen.actors if row["class_name"] == "GpuActor" and row["state"] == "ALIVE"]
    fits = len(names) == 1 and "@cpu:0#" in names[0]
    yield Promise("... actors are called by base model and device", fits, ", ".join(names))
    commands = [entry for entry in seen.ray_jobs if "orchestrator serve" not in entry]
    yield Promise("... commands leave no row", not commands, f"{len(seen.ray_jobs)} on the Jobs page")


def _job_of(task: str) -> str:
    found = re.match(r"lora\[(.+?)\]", task)
    return found[1] if found else task


# -- metrics ---------------------------------------------------------------------------------------------------------


def _metrics(served: Served, seen: Seen, server: Any) -> Iterator[Promise]:
    wanted = [metric for metric in METRICS if metric.name not in _NOT_HERE]
    if server is None:
        text = served.scrape()
        lacking = [metric.name for metric in wanted if f"ray_{metric.name}" not in text]
        yield Promise("Prometheus' scrape has every metric", not lacking, _of(wanted, lacking, "metrics"))
        labels = "\n".join(line for line in text.splitlines() if line.startswith("ray_loray_"))
    else:
        asked = {q.replace("$__rate_interval", "5m") for metric in wanted for q, _ in queries(metric)}
        lacking = sorted(query for query in asked if not server.query(query))
        yield Promise("Prometheus: every query of the dashboard has data", not lacking, _of(asked, lacking, "queries"))
        labels = json.dumps(server.series('{__name__=~"ray_loray_.*"}'))
    named = [name for name in seen.jobs if re.search(rf"\b{re.escape(name)}\b", labels)]
    yield Promise("... and no label names a job", not named, ", ".join(named) or "none does")


def _of(all_of: Any, lacking: list[str], noun: str) -> str:
    return f"{len(all_of) - len(lacking)} of {len(all_of)} {noun}" + (f"; not {', '.join(lacking)}" if lacking else "")


# -- terminal --------------------------------------------------------------------------------------------------------


def _terminal(seen: Seen) -> Iterator[Promise]:
    reason = seen.running[WAITING]["waiting_for"] or ""
    words: dict[str, list[str]] = {
        "list": [*seen.running, "RUNNING", "QUEUED", "FAILED", reason],
        "top": [*(name for name, job in seen.running.items() if job["state"] != "FAILED"), "RUNNING", "QUEUED", reason],
        "show": [PLAIN, "RUNNING", "loss"],
        "show waiting": [WAITING, "QUEUED", reason],
    }
    texts = {name: seen.verbs[name].stdout for name in words}
    for name, text in [*texts.items(), ("top on a terminal", "\n".join(seen.top))]:
        flat = " ".join(text.split())
        lacking = [word for word in words.get(name, words["top"][:-1]) if " ".join(word.split()) not in flat]
        width = widest(text.splitlines())
        colours = name in texts and "\x1b" in text
        figure = f"{len(text.splitlines())} lines, the widest {width}"
        figure += f"; without {lacking}" * bool(lacking) + "; with colours" * colours
        kept = not lacking and 0 < width <= WIDTH and not colours
        yield Promise(f"loray {name}: whole at {WIDTH} columns", kept, figure)
    documents = json.loads(seen.verbs["list --json"].stdout)
    yield Promise("loray list --json", len(documents) == len(seen.jobs), f"{len(documents)} jobs")


# -- told, expected, waited for --------------------------------------------------------------------------------------


def _on_end(seen: Seen) -> Promise:
    counts = Counter(one["event"] for one in seen.told)
    ends = {one["job"]["name"]: one["time"] for one in seen.told if one["event"] == "job"}
    late = [told - seen.jobs[name]["finished_at"] for name, told in ends.items() if name in seen.jobs]
    kept = counts == {"job": len(seen.jobs), "grid": 1, "queue": 1} and ends.keys() == seen.jobs.keys()
    return Promise(
        "on_end: each job, the grid and the queue, once",
        kept,
        f"{dict(counts)}; {max(late, default=0.0):.1f} s after the end at most",
    )


def _forecast(seen: Seen) -> Promise:
    running = {name: job for name, job in seen.running.items() if job["state"] == "RUNNING"}
    lacking = [name for name, job in running.items() if job["forecast"] is None and job["eta_s"] is None]
    ratios, guesses, within = [], 0, 0
    for name, job in running.items():
        expected, took = job["forecast"], seen.jobs[name]["finished_at"] - seen.looked_at
        if expected is not None:
            ratios.append(expected["finish_s"] / took)
            guesses += expected["guess"]
            within += expected["earliest_s"] <= took <= expected["latest_s"]
    queue = seen.cluster["forecast"]
    kept = bool(running) and not lacking and queue is not None
    figure = (
        f"{len(running) - len(lacking)} of {len(running)} that ran; forecast / real {median(ratios or [0.0]):.2f}, "
    )
    figure += f"{within} in the span, {guesses} called a guess"
    return Promise("ETA of each job and of the queue, with its span", kept, figure)


def _wait(seen: Seen) -> Promise:
    codes = {code: seen.verbs[f"wait {code}"].returncode for code in _CODES}
    wrong = [f"{_CODES[code]}: {got}, not {code}" for code, got in codes.items() if str(got) != code]
    return Promise("loray wait: exit codes", not wrong, "; ".join(wrong) or ", ".join(_CODES))


def until_metrics_are_told(served: Served, server: Any) -> Callable[[], bool]:
    """A condition: Ray has told all metrics, which takes it ten seconds; never waited for longer than half a minute."""
    until = time.monotonic() + 30

    def told() -> bool:
        found = list(_metrics(served, Seen(), server))
        return bool(found[0].kept) or time.monotonic() > until

    return told
