"""`loray plan`: what would become of jobs, without running anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from rich.table import Table

from orchestrator import formatting
from orchestrator.cli import progress
from orchestrator.cli.options import Address, AsJson, ClusterFile, JobFiles, PolicyName
from orchestrator.client import Client, read_jobs
from orchestrator.cluster.address import find_address
from orchestrator.cluster.cluster_config import ClusterFileError
from orchestrator.cluster.cluster_file import load_cluster_config, with_policy
from orchestrator.link.choose import is_elsewhere
from orchestrator.terminal import display
from orchestrator.validation.problems import Problem


def plan(
    job_files: JobFiles,
    cluster: ClusterFile = None,
    policy: PolicyName = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Show the memory, actor, start, finish and company that jobs would have; nothing is submitted or run.

    On the running cluster with what it has to do; or, with --cluster or where none runs, on this machine with the
    actors of the cluster file, all of them idle. Exit code: 0, 1 if some job could never run, 2 refused.
    """
    from orchestrator.control.preview import plan_offline

    specs = read_jobs(job_files, elsewhere=is_elsewhere(address))
    if cluster and address:
        text = "does not go with --cluster, which plans for idle actors on this machine; give one of them"
        raise ClusterFileError([Problem("--address", "", text)])
    config = with_policy(load_cluster_config(cluster), policy)
    if cluster is None and (is_elsewhere(address) or find_address(address, config.state_folder) is not None):
        client = Client(address)
        rows, where = client.plan(specs, policy), f"the cluster at {client.address}"
    else:
        rows, where = plan_offline(specs, config), "idle actors on this machine"
    if as_json:
        progress.print_json(rows)
    else:
        _show(rows, where)
    raise typer.Exit(int(any(row["reason"] for row in rows)))


def _show(rows: Sequence[dict[str, Any]], where: str) -> None:
    console = display.make_console()
    console.print(f"On {where}; nothing was submitted. Times are predictions, from now.", soft_wrap=True)
    console.print(_table(rows))
    for row in rows:
        if row["reason"] or row["remark"]:
            console.print(f"{row['job']}: {row['reason'] or row['remark']}", soft_wrap=True)


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table()
    for heading in ("job", "memory", "actor", "start", "finish", "steps", "with"):
        table.add_column(heading, justify="left" if heading in ("job", "actor", "with") else "right")
    for row in rows:
        table.add_row(
            row["job"],
            formatting.size(row["bytes"] or None),
            row["actor"] or "-",
            formatting.duration(row["start_s"]),
            formatting.duration(row["finish_s"]),
            str(row["steps"]),
            ", ".join(row["with"]) or "-",
        )
    return table
