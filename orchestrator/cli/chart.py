"""Writes a picture where the command line was told to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.validation.problems import Problem, ProblemsError

Chart = Annotated[
    Path | None,
    typer.Option("--gantt", metavar="FILE.svg", help="Also draw who trained where when.", show_default=False),
]


def write_chart(path: Path, svg: str) -> None:
    """Write a picture.

    Raises:
        ProblemsError: The file cannot be written.
    """
    try:
        path.write_text(svg, encoding="utf-8")
    except OSError as error:
        words = f"{path} cannot be written: {error.strerror}; name a file in a folder that exists"
        raise ProblemsError([Problem("--gantt", "", words)]) from None
