"""The verbs that look at jobs and steer them: `list`, `show`, `logs`, `cancel`, `pause`, `resume`, `retry`, `top`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import typer
from rich.live import Live

from gpu_actor.contract.errors import LorayError
from orchestrator import formatting
from orchestrator.cli import progress
from orchestrator.cli.chart import write_chart
from orchestrator.cli.options import Address, AsJson, Chart
from orchestrator.client import Client, JobView
from orchestrator.jobs.states import JobState
from orchestrator.priority import come_after_training
from orchestrator.report.timeline_chart import draw
from orchestrator.terminal import display
from orchestrator.terminal.job_story import job_story
from orchestrator.terminal.top import TopPicture

Ref = Annotated[str, typer.Argument(metavar="JOB", help="Id or name of a job.", show_default=False)]
Refs = Annotated[list[str], typer.Argument(metavar="JOB...", help="Ids or names of jobs.", show_default=False)]

RECENT_SECONDS = 24 * 3600.0
LOG_SECONDS = 1.0
CURVE_POINTS = 400  # twice the dots of the widest curve on a terminal
TOP_SECONDS = 2.0


def list_jobs(
    every: Annotated[bool, typer.Option("--all", help="Also jobs that ended more than a day ago.")] = False,
    state: Annotated[
        JobState | None,
        typer.Option("--state", case_sensitive=False, help="Only jobs in this state.", show_default=False),
    ] = None,
    chart: Chart = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Show the queue: jobs that run, that wait (and why), and that ended in the last day.

    --gantt draws the jobs shown: on which actor each was when, and the memory of the actors below.
    """
    client = Client(address)
    views = client.list_jobs()
    wanted = [view for view in views if state is None or view["state"] == state.value]
    oldest = time.time() - RECENT_SECONDS
    shown = [view for view in wanted if every or (view["finished_at"] or oldest) >= oldest]
    if chart is not None:
        names = {view["id"]: view["name"] for view in shown}
        write_chart(chart, draw(client.timeline(list(names)), names, f"Loray at {client.address}"))
    if as_json:
        progress.print_json(shown)
        return
    console = display.make_console()
    if shown:
        console.print(display.job_table(formatting.by_liveliness(shown), console.width))
    if hidden := len(wanted) - len(shown):
        console.print(f"{formatting.plural(hidden, 'older job')} not shown; --all shows everything")
    elif not shown:
        console.print(
            f"no job is {state.value}" if state and views else "no jobs yet; `loray submit JOB.yaml` adds one"
        )


def show(ref: Ref, address: Address = None, as_json: AsJson = False) -> None:
    """Show everything about one job: settings and numbers, what happened to it in order, and the curve of its loss."""
    client = Client(address)
    view = client.get_job(ref)
    events: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    if view["spec"]:  # else it is another's, whose logs are not for us
        events, rows = client.events(view["id"]), client.metrics(view["id"], most=CURVE_POINTS)
    losses = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    evaluations = [(row["step"], row["eval_loss"]) for row in rows if row.get("eval_loss") is not None]
    if as_json:
        curves = {"losses": losses, "eval_losses": evaluations}
        progress.print_json({**view, "events": events, "curves": curves})
    else:
        display.make_console().print(job_story(view, events, losses, evaluations))


def logs(
    ref: Ref,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is over.")] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Show what happened to a job and its metrics, in the order in which they happened."""
    client = Client(address)
    job_id = client.get_job(ref)["id"]
    source = _LogSource(client, job_id)
    while True:
        view = client.get_job(job_id)
        for entry in source.news(view["attempt"]):
            if as_json:
                progress.print_json_line(entry)
            else:
                print(formatting.log_line(entry), flush=True)
        if view["state"] not in formatting.LIVE_STATES or not follow:
            return
        time.sleep(LOG_SECONDS)


class _LogSource:
    """Events and metric rows of one job that were not seen yet."""

    def __init__(self, client: Client, job_id: str) -> None:
        self._client = client
        self._job_id = job_id
        self._attempt = 0
        self._seq = 0
        self._rows = 0
        self._newest = 0.0

    def news(self, attempt: int) -> list[dict[str, Any]]:
        """What came in since the last call.

        Args:
            attempt: The job's current attempt. A new one goes on from a checkpoint, and rows after it are replaced.
        """
        if attempt != self._attempt:
            self._attempt, self._rows = attempt, 0
        events = self._client.events(self._job_id, self._seq)
        rows = self._client.metrics(self._job_id, self._rows)
        self._seq = max((event["seq"] for event in events), default=self._seq)
        self._rows += len(rows)
        rows = [row for row in rows if row["time"] > self._newest]
        self._newest = max((row["time"] for row in rows), default=self._newest)
        return sorted(events + rows, key=lambda entry: float(entry["time"]))


def _steer(outcome: str, method: Callable[[Client, str], JobView], doc: str) -> Callable[..., None]:
    def verb(refs: Refs, address: Address = None, as_json: AsJson = False) -> None:
        _steer_all(outcome, method, refs, address, as_json=as_json)

    verb.__doc__ = doc
    return verb


def _steer_all(
    outcome: str, method: Callable[[Client, str], JobView], refs: Sequence[str], address: str | None, *, as_json: bool
) -> None:
    client = Client(address)
    views: list[JobView] = []
    errors: list[LorayError] = []
    for ref in refs:
        try:
            views.append(method(client, ref))
        except LorayError as error:
            errors.append(error)
    if as_json:
        progress.print_json(views)
    else:
        for view in views:
            print(f"{view['name']}  {outcome} ({view['state']})")
    if errors:
        raise errors[0] if len(errors) == 1 else LorayError("\n".join(map(str, errors)))


cancel = _steer("cancel requested", Client.cancel, "End jobs for good, and drop their checkpoints.")
pause = _steer("pause requested", Client.pause, "Take jobs off their actor, or out of the queue, until resumed.")
resume = _steer("resumed", Client.resume, "Put paused jobs back into the queue.")


def retry(
    refs: Refs,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Begin anew; nothing of the old run is used.")
    ] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Put failed or cancelled jobs back into the queue: each goes on from its newest checkpoint, if it has one."""
    method = partial(Client.retry, from_start=from_start)
    _steer_all("put back", method, refs, address, as_json=as_json)


def top(address: Address = None, as_json: AsJson = False) -> None:
    """Watch the cluster: actors, jobs that are not over and recent events, until Ctrl-C (in a pipe once)."""
    client = Client(address)
    console = display.make_console()
    if as_json:
        progress.print_json(client.overview())
        return
    if not console.is_terminal:
        console.print(_picture(client, None))
        return
    come_after_training()
    with Live(console=console, screen=True, auto_refresh=False) as live_screen:
        while True:
            live_screen.update(_picture(client, console.height), refresh=True)
            time.sleep(TOP_SECONDS)


def _picture(client: Client, height: int | None) -> TopPicture:
    seen = client.overview()
    counts = ", ".join(f"{count} {state}" for state, count in seen["jobs"].items() if count) or "no jobs yet"
    title = f"Loray at {client.address}: {counts}{_queue_end(seen['forecast'])}"
    return TopPicture(title, seen["actors"], seen["live_jobs"], seen["events"], height)


def _queue_end(expected: dict[str, Any] | None) -> str:
    if expected is None:
        return ""
    unknown = formatting.plural(expected["unknown"], "job")
    return f"; all over {formatting.span(expected)}" + (f", but for {unknown}" if expected["unknown"] else "")
