"""The command line: `loray ...`, and the same verbs under `python -m orchestrator ...`."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from gpu_actor.contract.errors import ClusterUnavailableError, JobFailedError, LorayError, WaitTimeoutError
from orchestrator.cli import progress
from orchestrator.terminal import display
from orchestrator.version import __version__

FAILED, REFUSED, NO_CLUSTER = 1, 2, 3

_VERBS = {  # imported when they are called, so that each waits for no more than it uses
    "run": "run:run",
    "serve": "run:serve",
    "submit": "run:submit",
    "list": "jobs:list_jobs",
    "show": "jobs:show",
    "logs": "jobs:logs",
    "wait": "wait:wait",
    "cancel": "jobs:cancel",
    "pause": "jobs:pause",
    "resume": "jobs:resume",
    "retry": "jobs:retry",
    "top": "jobs:top",
    "report": "report:report",
    "ask": "ask:ask",
    "export": "export:export",
    "plan": "plan:plan",
    "simulate": "simulate:simulate",
    "token": "tokens:tokens",
}
_CONTEXT = {"help_option_names": ["-h", "--help"]}


class _Verbs(TyperGroup):
    """The verbs, each from its module under `orchestrator.cli`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all."""
        return [*_VERBS, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of them; None: there is none."""
        if cmd_name not in _VERBS:
            return super().get_command(ctx, cmd_name)
        module, _, name = _VERBS[cmd_name].partition(":")
        verb = getattr(importlib.import_module(f"orchestrator.cli.{module}"), name)
        if not isinstance(verb, typer.Typer):
            alone = typer.Typer(add_completion=False)
            alone.command(cmd_name, context_settings=_CONTEXT)(verb)
            verb = alone
        found = typer.main.get_command(verb)
        found.name = cmd_name
        return found


app = typer.Typer(
    name="loray",
    cls=_Verbs,
    help="LoRA on Ray: train many LoRA adapters at once on few GPUs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=_CONTEXT,
)


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
    from orchestrator.jobs.job import JobFileError

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
