"""Options and arguments that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Chart = Annotated[
    Path | None,
    typer.Option("--gantt", metavar="FILE.svg", help="Also draw who trained where when.", show_default=False),
]

JobFiles = Annotated[
    list[Path], typer.Argument(metavar="JOB...", help="Job files (YAML, or JSON).", show_default=False)
]
ClusterFile = Annotated[
    Path | None,
    typer.Option("--cluster", metavar="FILE", help="Cluster file: storage, actors, scheduler.", show_default=False),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="HOST:PORT of a Ray cluster, or URL of an HTTP door (its token: LORAY_TOKEN); default: LORAY_ADDRESS, "
        "RAY_ADDRESS, then what was started on this machine.",
        show_default=False,
    ),
]
PolicyName = Annotated[
    str | None,
    typer.Option(
        "--policy",
        metavar="NAME",
        help="Scheduler policy instead of the cluster file's: cosrpt, srpt, fifo, fifo-4 or fifo-memory.",
        show_default=False,
    ),
]
HttpPort = Annotated[
    int | None,
    typer.Option(
        "--http",
        metavar="PORT",
        min=0,
        max=65535,
        help="Also open the HTTP door there, on the loopback interface; 0: any free port.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
