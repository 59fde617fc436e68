"""A picture, written where the command line was told to."""

from __future__ import annotations

from pathlib import Path

from orchestrator.validation.problems import Problem, ProblemsError


def write_chart(path: Path, svg: str) -> None:
    """Write a picture.

    Raises:
        ProblemsError: The file cannot be written.
    """
    try:
        path.write_text(svg, encoding="utf-8")
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}; name a file in a folder that exists"
        raise ProblemsError([Problem("--gantt", "", message)]) from None
