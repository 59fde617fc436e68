"""The verbs that bring work in: `run`, `serve`, `submit`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from gpu_actor.contract.errors import IllegalTransitionError, LorayError
from gpu_actor.paths.locations import loray_home
from gpu_actor.paths.urls import is_url
from orchestrator import formatting
from orchestrator.cli import progress
from orchestrator.cli.options import Address, AsJson, ClusterFile, HttpPort, JobFiles, PolicyName
from orchestrator.cli.stop_signals import stop_code, stop_signals
from orchestrator.client import Client, Job, JobView, read_jobs
from orchestrator.cluster.address import CLUSTER_FILE, find_address
from orchestrator.cluster.cluster_file import load_cluster_config, with_http, with_policy
from orchestrator.cluster.connection import Connection
from orchestrator.control import launch
from orchestrator.endpoint.door_file import door_path
from orchestrator.jobs.job import JobSpec
from orchestrator.jobs.preflight import named_places
from orchestrator.jobs.states import JobState
from orchestrator.link.choose import is_elsewhere
from orchestrator.terminal import display

CANCEL_SECONDS = 60.0
PING_SECONDS = 5.0


def say(console: Console, line: str) -> None:
    """Prints one line, unbroken and without markup."""
    console.print(Text(line), soft_wrap=True)


def exit_code(views: Sequence[JobView]) -> int:
    """0 when every job succeeded, else 1."""
    return 0 if all(view["state"] == JobState.SUCCEEDED for view in views) else 1


def run(
    job_files: JobFiles,
    cluster: ClusterFile = None,
    policy: PolicyName = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Train jobs to their end: join a cluster, or start one here, submit, and show progress.

    Jobs that an earlier run of the same file left in the queue go on where they were.

    Exit code: 0 all succeeded, 1 some failed or were cancelled, 2 refused, 3 no cluster reachable, 130 interrupted.
    """
    if is_elsewhere(address):
        raise LorayError("run trains on a Ray cluster; through an HTTP door it is `loray submit --wait JOB.yaml`")
    config = with_policy(load_cluster_config(cluster), policy)
    specs = read_jobs(job_files, goes_on=True)
    if config.allowed_roots is None:  # who writes the jobs and starts the cluster allows what the jobs name
        config = config.model_copy(update={"allowed_roots": [*config.roots, *named_places(specs)]})
    console = display.make_console(quiet=as_json)
    if find_address(address, config.state_folder) is None:
        console.print("starting Ray on this machine ...")
    with launch.join_or_start(address, config) as link, stop_signals():
        say(console, "Ray started" if link.started else f"joined Ray at {link.address}")
        if link.dashboard:
            say(console, _dashboard(link))
        _warn_of_unused(cluster, policy, link)
        client = Client()
        continued, new = _continued_and_new(client, specs)
        queued = _live_jobs(client)
        if others := queued - {job.id for job in continued}:
            say(console, f"{formatting.plural(len(others), 'job')} in the queue already; trained as well")
        if continued:
            say(console, f"goes on, as left by an earlier run: {', '.join(job.name for job in continued)}")
        jobs = continued + (_submit(client, new, console) if new else [])
        views = _follow_to_end(client, jobs, as_json=as_json, ours=link.started)
        if link.started:
            _wait_for_others(client, queued | {job.id for job in jobs}, console, as_json=as_json)
            if left := _live_jobs(client):
                count = formatting.plural(len(left), "job")
                say(console, f"{count} left in the queue; `loray serve` goes on with them")
    raise typer.Exit(exit_code(views))


def _warn_of_unused(cluster: Path | None, policy: str | None, link: Connection, http: int | None = None) -> None:
    unused = [str(cluster)] if cluster else []
    unused += [f"--policy {policy}"] if policy else []
    unused += [f"--http {http}"] if http is not None else []
    if unused and not link.orchestrator_started:
        stderr = display.make_console(stderr=True)
        which = f"{' and '.join(unused)} {'is' if len(unused) == 1 else 'are'} not used"
        say(stderr, f"{which}: the orchestrator runs already, with the settings that it was started with")


def _continued_and_new(client: Client, specs: Sequence[JobSpec]) -> tuple[list[Job], list[JobSpec]]:
    """Jobs that an earlier run left in the queue, the very same in every field, and those that are to be submitted."""
    live = {view["name"]: view for view in client.list_jobs(most_over=0)}
    continued, new = [], []
    for spec in specs:
        view = live.get(spec.name)
        if view and view["state"] != "PAUSED" and view["spec"] == spec.model_dump(mode="json"):
            continued.append(Job(client, view["id"], view["name"]))
        else:
            new.append(spec)
    return continued, new


def _live_jobs(client: Client, but: str | None = None) -> set[str]:
    return {view["id"] for view in client.list_jobs(most_over=0) if view["state"] != but}


def _wait_for_others(client: Client, ours: set[str], console: Console, *, as_json: bool) -> None:
    """Keeps our cluster alive for jobs that others have submitted to it in the meantime."""
    try:
        while others := _live_jobs(client, but="PAUSED") - ours:
            count = formatting.plural(len(others), "job")
            say(console, f"waiting for {count} that others submitted (Ctrl-C leaves them in the queue)")
            progress.follow(client, sorted(others), progress.make_reporter(as_json=as_json))
    except KeyboardInterrupt:
        return


def _submit(client: Client, specs: Sequence[JobSpec], console: Console) -> list[Job]:
    jobs, remarks = client.accept(specs)
    for remark in remarks:
        say(console, remark)
    say(console, f"submitted {formatting.plural(len(jobs), 'job')}: {', '.join(job.name for job in jobs)}")
    return jobs


def _follow_to_end(client: Client, jobs: Sequence[Job], *, as_json: bool, ours: bool) -> list[JobView]:
    """Shows jobs until they are over. Ctrl-C cancels them in a cluster of our own, and leaves them in another."""
    ids = [job.id for job in jobs]
    try:
        views = progress.follow(client, ids, progress.make_reporter(as_json=as_json))
    except KeyboardInterrupt as stop:
        note = display.make_console(stderr=True)
        if ours:
            say(note, "cancelling ... (Ctrl-C again leaves at once)")
            progress.show_end(_cancel(client, ids), as_json=as_json)
        else:
            say(note, "the jobs go on in the cluster: `loray list` shows them, `loray cancel NAME` ends one")
        raise typer.Exit(stop_code(stop)) from None
    progress.show_end(views, as_json=as_json)
    return views


def _cancel(client: Client, ids: Sequence[str]) -> list[JobView]:
    for job_id in ids:
        with contextlib.suppress(IllegalTransitionError):  # it is over already
            client.cancel(job_id)
    deadline = time.monotonic() + CANCEL_SECONDS
    while True:
        views = client.get_jobs(ids)
        if time.monotonic() > deadline or not any(view["state"] in formatting.LIVE_STATES for view in views):
            return views
        time.sleep(progress.POLL_SECONDS)


def submit(
    job_files: JobFiles,
    address: Address = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show progress and return when all jobs are over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put jobs into the queue of a running cluster: all of them, or none when one has a problem."""
    specs = read_jobs(job_files, elsewhere=is_elsewhere(address))
    client = Client(address)
    jobs = _submit(client, specs, display.make_console(quiet=as_json))
    if wait:
        with stop_signals():
            views = _follow_to_end(client, jobs, as_json=as_json, ours=False)
        raise typer.Exit(exit_code(views))
    if as_json:
        progress.print_json(client.get_jobs([job.id for job in jobs]))


def serve(
    cluster: ClusterFile = None,
    policy: PolicyName = None,
    http: HttpPort = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Start Ray and the orchestrator here until Ctrl-C, or put the orchestrator on the Ray cluster at --address."""
    config = with_http(with_policy(load_cluster_config(cluster), policy), http)
    storage = config.state_folder
    running = find_address(address, storage)
    if running and running.source == str(storage / CLUSTER_FILE):
        raise launch.AlreadyRunningError(
            f"Loray runs already at {running.address}, from {storage}; submit to it with `loray submit JOB.yaml`"
        )
    if running:
        with launch.join_or_start(address, config) as link:
            _warn_of_unused(cluster, policy, link, http)
            _announce(link, as_json=as_json)
        return
    if not as_json:
        print("starting Ray on this machine ...", flush=True)
    with launch.start_local(config) as link, stop_signals():
        _announce(link, as_json=as_json)
        client = Client()
        try:
            while True:
                time.sleep(PING_SECONDS)
                client.ping()
        except KeyboardInterrupt:
            note = display.make_console(stderr=True)
            say(note, "stopping: running jobs write a checkpoint and stay in the queue ...")


def _announce(link: Connection, *, as_json: bool) -> None:
    found = Client().ping()
    storage, door = found["storage"], found["http"] or {"url": None, "problem": None}
    if door["problem"]:
        raise LorayError(f"the HTTP door at {door['problem']}; give --http another port, or 0 for any free one")
    if as_json:
        url = door["url"]
        progress.print_json_line(
            {"address": link.address, "dashboard": link.dashboard, "storage": storage, "http": url}
        )
        return
    console = display.make_console()
    say(console, f"Loray runs at {link.address}; jobs and their states are kept in {storage}")
    if is_url(found["outputs"]):
        say(console, f"jobs that name no folder of this machine leave their adapters in {found['outputs']}")
    if link.dashboard:
        say(console, _dashboard(link))
    if door["url"]:
        where = door_path(Path(storage))
        say(console, f"HTTP door: {door['url']} (/api, and OpenAI's /v1); the operator's token is in {where}")
    option = "" if Path(storage) == loray_home() else f" --address {link.address}"
    say(console, f"submit with: loray submit{option} JOB.yaml")
    if link.started:
        say(console, "Ctrl-C stops it")


def _dashboard(link: Connection) -> str:
    locked = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    hint = " (it asks for the token that `ray get-auth-token` prints)" if locked else ""
    return f"dashboard: {link.dashboard}{hint}"
