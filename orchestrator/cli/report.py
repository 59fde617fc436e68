"""The verb `report`: one page about many jobs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gpu_actor.contract.errors import ClusterUnavailableError, LorayError
from orchestrator.cli import progress
from orchestrator.cli.options import Address, AsJson
from orchestrator.client import Client
from orchestrator.report.contents import Contents, essential, is_output_folder, newest, of_folders

Refs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[JOB...]", help="Names or ids of jobs, or output folders; without any: all jobs.", show_default=False
    ),
]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="FILE.html", help="Where the page goes.")]


def report(
    jobs: Refs = None, output: Output = Path("report.html"), address: Address = None, as_json: AsJson = False
) -> None:
    """Write one page about jobs: their curves, settings against results, who trained where, what failed and why.

    The page holds everything it needs. Output folders can be reported on without a cluster.
    """
    try:
        from orchestrator.report.page import render
    except ModuleNotFoundError as error:
        raise LorayError(f"the page needs {error.name}; `pip install 'loray[report]'` brings it") from None
    contents = _contents(jobs or (), address)
    try:
        output.write_text(render(contents), encoding="utf-8")
    except OSError as error:
        raise LorayError(f"{output} cannot be written: {error.strerror}; name a file in a folder that exists") from None
    if as_json:
        progress.print_json({"file": str(output.absolute()), "jobs": [job["id"] for job in contents.jobs]})
    else:
        print(f"{output}  {len(contents.jobs)} jobs, {output.stat().st_size / 2**20:.1f} MiB")


def _contents(refs: Sequence[str], address: str | None) -> Contents:
    """What is asked for: from the orchestrator, or from folders where all are folders."""
    if refs and all(map(is_output_folder, refs)):
        return of_folders(refs)
    try:
        client = Client(address)
    except ClusterUnavailableError:
        if refs:
            of_folders(refs)  # names the one that is none
        raise
    if refs:
        found = views = [_job(client, ref) for ref in dict.fromkeys(refs)]
    else:
        # of another's job nobody but the operator sees the settings or the curves
        found = [view for view in client.list_jobs() if view["spec"] is not None]
        views = newest(found)
    return Contents(
        f"Loray at {client.address}",
        views,
        {view["id"]: essential(client.metrics(view["id"])) for view in views},
        client.timeline([view["id"] for view in views]),
        left_out=len(found) > len(views),
    )


def _job(client: Client, ref: str) -> Any:
    """A job by id, name or output folder."""
    if is_output_folder(ref):
        folder = str(Path(ref).expanduser().absolute())
        found = [view for view in client.list_jobs() if view["output_dir"] == folder]
        if found:
            return found[-1]
    return client.get_job(ref)
