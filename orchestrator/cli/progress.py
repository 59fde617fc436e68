"""Following jobs to their end: a live picture on a terminal, plain lines or JSON lines elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live

from orchestrator import formatting
from orchestrator.client import Client, JobView
from orchestrator.formatting import View
from orchestrator.terminal import display

POLL_SECONDS = 0.5
"""Between two looks of somebody who watches a terminal."""

LINE_SECONDS = 10.0
LIVE_STATES = frozenset(formatting.LIVE_STATES)


class Reporter(Protocol):
    """Shows jobs while they go on; a context manager, so that a terminal is left as it was."""

    def __enter__(self) -> Reporter: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def every(self) -> float:
        """Seconds between two looks."""

    def update(self, views: Sequence[View], actors: Callable[[], Sequence[View]]) -> None:
        """Takes the newest state of all jobs, and a way to ask for the actors'."""


class LiveReporter:
    """One row for each job with a bar, drawn again in place."""

    every = POLL_SECONDS

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> LiveReporter:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def update(self, views: Sequence[View], actors: Callable[[], Sequence[View]]) -> None:
        """Draws the picture again."""
        self._live.update(display.progress_table(views, actors(), *self._console.size), refresh=True)


class LineReporter:
    """A line for a job at each change of state, and every ten seconds while it moves."""

    every = 2 * POLL_SECONDS

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._states: dict[str, str] = {}
        self._shown: dict[str, tuple[float, object]] = {}

    def __enter__(self) -> LineReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def update(self, views: Sequence[View], actors: Callable[[], Sequence[View]]) -> None:
        """Prints what is new."""
        now = time.monotonic()
        moved = False
        for view in views:
            turned = self._states.get(view["id"]) != view["state"]
            news = (view["state"], view["step"], view["waiting_for"])
            since, old = self._shown.get(view["id"], (0.0, None))
            if not turned and (news == old or now - since < LINE_SECONDS):
                continue
            self._states[view["id"]] = view["state"]
            self._shown[view["id"]] = (now, news)
            self._print(view, "state" if turned else "progress")
            moved = moved or not turned
        if moved and not self._as_json:
            for actor in actors():
                print(f"{time.strftime('%H:%M:%S')}  actor {display.actor_line(actor).plain}", flush=True)

    def _print(self, view: View, event: str) -> None:
        if self._as_json:
            print_json_line({"event": event, "time": time.time(), "job": brief(view)})
        else:
            print(f"{time.strftime('%H:%M:%S')}  {formatting.progress_line(view)}", flush=True)


def make_reporter(*, as_json: bool) -> Reporter:
    """The reporter that fits where the output goes."""
    console = display.make_console()
    if as_json or not console.is_terminal:
        return LineReporter(as_json=as_json)
    return LiveReporter(console)


def brief(view: View) -> dict[str, Any]:
    """A job without its specification, which does not change."""
    return {key: value for key, value in view.items() if key != "spec"}


def print_json(document: Any) -> None:
    """Prints one JSON document, for people as well."""
    print(json.dumps(formatting.finite(document), ensure_ascii=False, indent=2), flush=True)


def print_json_line(document: Mapping[str, Any]) -> None:
    """Prints one JSON document on one line, at once."""
    print(json.dumps(formatting.finite(document), ensure_ascii=False), flush=True)


def show_end(views: Sequence[View], *, as_json: bool) -> None:
    """Tells how jobs ended: a table, or a JSON line."""
    if as_json:
        print_json_line({"event": "end", "time": time.time(), "jobs": [brief(view) for view in views]})
    else:
        display.make_console().print(display.result_table(views))


def follow(client: Client, ids: Sequence[str], reporter: Reporter, until: float | None = None) -> list[JobView]:
    """Shows jobs until all of them are over, and returns their last state.

    Args:
        client: Whom to ask.
        ids: The jobs.
        reporter: Where to show them.
        until: When to stop although some are not over (monotonic).
    """
    last: dict[str, JobView] = {}
    with reporter:
        while True:
            open_ids = [job_id for job_id in ids if job_id not in last or last[job_id]["state"] in LIVE_STATES]
            last.update((view["id"], view) for view in client.get_jobs(open_ids))
            views = [last[job_id] for job_id in ids]
            reporter.update(views, lambda: client.cluster()["actors"])
            left = reporter.every if until is None else until - time.monotonic()
            if left <= 0 or not any(view["state"] in LIVE_STATES for view in views):
                return views
            time.sleep(min(left, reporter.every))
