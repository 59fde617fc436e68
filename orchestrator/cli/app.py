"""The command line: `loray ...`, and the same verbs under `python -m orchestrator ...`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.text import Text

from gpu_actor.contract.errors import ClusterUnavailableError, JobFailedError, LorayError, WaitTimeoutError
from orchestrator.cli import ask, display, export, jobs, plan, progress, report, run, simulate, tokens
from orchestrator.jobs.job import JobFileError
from orchestrator.version import __version__

FAILED, REFUSED, NO_CLUSTER = 1, 2, 3

app = typer.Typer(
    name="loray",
    help="LoRA on Ray: train many LoRA adapters at once on few GPUs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run.run)
app.command()(run.serve)
app.command()(run.submit)
app.command("list")(jobs.list_jobs)
app.command()(jobs.show)
app.command()(jobs.logs)
app.command("cancel")(jobs.cancel)
app.command("pause")(jobs.pause)
app.command("resume")(jobs.resume)
app.command("retry")(jobs.retry)
app.command()(jobs.top)
app.command()(ask.ask)
app.command()(report.report)
app.command()(export.export)
app.command()(plan.plan)
app.command()(simulate.simulate)
app.add_typer(tokens.tokens, name="token")


@app.command()
def schema() -> None:
    """Print the JSON schema of a job file."""
    from orchestrator.jobs.schema import job_schema

    progress.print_json(job_schema())


def _version(wanted: bool) -> None:
    if wanted:
        print(f"loray {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """LoRA on Ray: train many LoRA adapters at once on few GPUs."""


def exit_code(error: Exception) -> int:
    """1 for a job or a fault of ours, 2 for what was refused, 3 for a cluster out of reach."""
    if isinstance(error, ClusterUnavailableError):
        return NO_CLUSTER
    if isinstance(error, JobFailedError | WaitTimeoutError) or not isinstance(error, LorayError):
        return FAILED
    return REFUSED


def tell(error: Exception) -> None:
    """Tells a person on stderr what went wrong."""
    if isinstance(error, JobFileError) and len(error.problems) > 1:
        lines = [f"{len(error.problems)} problems, and no job was submitted:"]
        lines += [f"  {problem}" for problem in error.problems]
        message = "\n".join(lines)
    elif isinstance(error, LorayError):
        message = str(error)
    else:
        message = f"unexpected {type(error).__name__}: {error} (LORAY_DEBUG=1 shows where)"
    console = display.make_console(stderr=True)
    console.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)


def main() -> None:
    """Runs the command line. No error gets out as a traceback, unless LORAY_DEBUG=1 asks for it."""
    try:
        app()
    except Exception as error:
        if os.environ.get("LORAY_DEBUG") == "1":
            raise
        tell(error)
        sys.exit(exit_code(error))
