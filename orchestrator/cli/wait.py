"""The verb `wait`: what a script asks before it goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import typer

from orchestrator.cli import progress
from orchestrator.cli.jobs import Refs
from orchestrator.cli.options import Address, AsJson
from orchestrator.cli.stop_signals import stop_code, stop_signals
from orchestrator.client import Client, JobView
from orchestrator.formatting import LIVE_STATES, duration, plural
from orchestrator.jobs.states import JobState
from orchestrator.terminal import display

SUCCEEDED, FAILED, CANCELLED = 0, 1, 4
TIMED_OUT = 124  # as timeout(1) has it


def wait(
    refs: Refs,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", min=0.0, help="Wait no longer.", show_default=False),
    ] = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Wait until jobs are over; they go on if the waiting is ended. A paused job is not over.

    Exit code: 0 all succeeded, 1 some failed, 2 an unknown job, 3 no cluster reachable, 4 none failed and some were
    cancelled, 124 the time was up, 130 interrupted.
    """
    client = Client(address)
    ids = list(dict.fromkeys(client.get_job(ref)["id"] for ref in refs))
    until = None if timeout is None else time.monotonic() + timeout
    try:
        with stop_signals():
            views = progress.follow(client, ids, progress.make_reporter(as_json=as_json), until)
    except KeyboardInterrupt as stop:
        raise typer.Exit(stop_code(stop)) from None
    progress.show_end(views, as_json=as_json)
    code = exit_code(views)
    if code == TIMED_OUT:
        left = plural(sum(view["state"] in LIVE_STATES for view in views), "job")
        note = f"{left} not over after {duration(timeout)}; what is not over goes on"
        display.make_console(stderr=True).print(note, soft_wrap=True)
    raise typer.Exit(code)


def exit_code(views: Sequence[JobView]) -> int:
    """What became of jobs, as an exit code: a failure says more than the time that was up."""
    states = {view["state"] for view in views}
    if JobState.FAILED in states:
        return FAILED
    if states & set(LIVE_STATES):
        return TIMED_OUT
    return CANCELLED if JobState.CANCELLED in states else SUCCEEDED
