"""How jobs and actors look on a terminal: lines and tables. It asks nobody for anything."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import ClassVar

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.formatting import (
    NONE,
    View,
    amount,
    base_names,
    by_liveliness,
    duration,
    eta,
    loss,
    plural,
    remark,
    seconds_run,
    share,
    size,
    steps,
)

STYLES = {
    "QUEUED": "yellow",
    "RUNNING": "cyan",
    "PAUSED": "magenta",
    "SUCCEEDED": "green",
    "FAILED": "red",
    "CANCELLED": "red",
    "empty": "dim",
    "starting": "yellow",
    "loading": "yellow",
    "ready": "green",
    "failed": "red",
    "lost": "red",
}
PIPE_WIDTH = 240
WIDE, WIDE_LIST = 120, 160  # columns from which on remarks stand beside the facts


def make_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console of the terminal's width; wide when the output goes to a file or a pipe, so that nothing is cut.

    Args:
        stderr: Write to standard error instead of standard output.
        quiet: Write nothing.
    """
    stream = sys.stderr if stderr else sys.stdout
    wide = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(stderr=stderr, quiet=quiet, highlight=False, width=PIPE_WIDTH if wide else None)


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state, style=STYLES.get(state, ""))


def actor_line(actor: View, *, whole: bool = False) -> Text:
    """One line about one actor: memory and speed.

    Args:
        actor: The actor.
        whole: Go on in a further line instead of being cut.
    """
    cut = {} if whole else {"overflow": "ellipsis", "no_wrap": True}
    text = Text.assemble(str(actor["name"]), " ", state_text(actor["state"]), **cut)  # type: ignore[arg-type]
    if actor["state"] == "ready":
        text.append(f"  {amount(actor['tokens_per_s'])} tokens/s in all")
    if actor["memory_used"]:
        limit = f" of {size(actor['memory_limit'])}" if actor["memory_limit"] else ""
        text.append(f"  memory {size(actor['memory_used'])}{limit} (peak {size(actor['memory_peak'])})")
    if actor["jobs"]:
        text.append(f"  {plural(len(actor['jobs']), 'job')}")
    if actor["reason"]:
        text.append(f"  {actor['reason']}", style="red" if actor["state"] in ("failed", "lost") else "")
    return text


def progress_table(views: Sequence[View], actors: Sequence[View], width: int, height: int) -> Group:
    """The live picture: one row for each job with a bar, and one line for each actor.

    Args:
        views: The jobs.
        actors: The actors.
        width: Columns that the terminal has; in a narrow one what there is to remark stands below the table.
        height: Lines that the terminal has; jobs beyond it are only counted.
    """
    wide = width >= WIDE
    room = max(3, height - len(actors) - 4)
    shown = by_liveliness(views)[:room]
    notes = [] if wide else [view for view in shown if remark(view)][: room - len(shown)]
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    table.add_column("job", no_wrap=True, overflow="ellipsis", max_width=32 if wide else max(12, width - 58))
    table.add_column("state", no_wrap=True, min_width=9)
    table.add_column("", ratio=1, min_width=8, max_width=30)
    for title, least in (("step", 7), ("loss", 6), ("tok/s", 5), ("ETA", 7)):
        table.add_column(title, justify="right", no_wrap=True, min_width=least)
    if wide:
        table.add_column("", no_wrap=True, overflow="ellipsis", ratio=2)
    for view in shown:
        running = view["state"] == "RUNNING"
        table.add_row(
            Text(view["name"]),
            state_text(view["state"]),
            ProgressBar(total=1.0, completed=share(view)),
            steps(view),
            loss(view["loss"]),
            amount(view["tokens_per_s"]) if running else "",
            "" if eta(view) == NONE else eta(view),
            *([Text(remark(view), style="dim")] if wide else []),
        )
    parts: list[RenderableType] = [table]
    if len(shown) < len(views):
        parts.append(Text(f"... and {plural(len(views) - len(shown), 'more job')}", style="dim"))
    parts += [Text(f"{view['name']}: {remark(view)}", style="dim", no_wrap=True, overflow="ellipsis") for view in notes]
    parts += [actor_line(actor) for actor in actors]
    return Group(*parts)


def result_table(views: Sequence[View]) -> Table:
    """The end of a run: how each job ended, and where its adapter is or why there is none."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("job", no_wrap=True, overflow="ellipsis")
    table.add_column("state", no_wrap=True)
    for title in ("loss", "steps", "tokens", "time"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("adapter, or the reason", overflow="fold")
    for view in views:
        done = view["state"] == "SUCCEEDED"
        table.add_row(
            Text(view["name"]),
            state_text(view["state"]),
            loss(view["loss"]),
            str(view["step"]) if done else steps(view),
            amount(view["tokens"]),
            duration(seconds_run(view)),
            Text(view["output_dir"] if done else remark(view) or NONE),
        )
    return table


def job_table(views: Sequence[View], width: int) -> RenderableType:
    """The queue: one row for each job.

    Args:
        views: The jobs.
        width: Columns that the terminal has; in a narrow one what there is to remark stands below each job.
    """
    if width < WIDE_LIST:
        return _narrow_jobs(views, width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("job", no_wrap=True, overflow="ellipsis", max_width=width // 5)
    table.add_column("id", no_wrap=True)
    table.add_column("state", no_wrap=True, min_width=9)
    table.add_column("base model", no_wrap=True, overflow="ellipsis", max_width=width // 5)
    for title, least in (("prio", 4), ("step", 7), ("loss", 6), ("tok/s", 5), ("ETA", 6)):
        table.add_column(title, justify="right", no_wrap=True, min_width=least)
    table.add_column("remark", overflow="fold", min_width=20)
    bases = base_names(view["base_model"] for view in views)
    for view in views:
        running = view["state"] == "RUNNING"
        table.add_row(
            Text(view["name"]),
            Text(view["id"]),
            state_text(view["state"]),
            Text(bases[view["base_model"]]),
            str(view["priority"]),
            steps(view),
            loss(view["loss"]),
            amount(view["tokens_per_s"]) if running else NONE,
            eta(view),
            Text(remark(view)),
        )
    return table


def _narrow_jobs(views: Sequence[View], width: int) -> Group:
    """A line of facts for each job, and below it, whole, its base model, why it waits or how it ended."""
    lines = JobLines(views, width)
    bases = base_names(view["base_model"] for view in views)
    parts: list[RenderableType] = [lines.title]
    for view in views:
        own = bases[view["base_model"]] if len(bases) > 1 else ""
        parts += [lines.facts(view), *indented(remark_with_base(view, own))]
    if len(bases) == 1:
        parts.append(Text(f"base model: {next(iter(bases.values()))}", style="dim", overflow="fold"))
    return Group(*parts)


class JobLines:
    """Jobs below each other in columns that fit a narrow terminal."""

    _COLUMNS: ClassVar = {"state": 9, "step": 9, "loss": 7, "tok/s": 5, "ETA": 7}

    def __init__(self, views: Sequence[View], width: int) -> None:
        """Makes the first column as wide as the names, if there is room.

        Args:
            views: The jobs.
            width: Columns that the terminal has.
        """
        name = max([len("job"), *(len(view["name"]) for view in views)])
        self._name = max(10, min(name, width - sum(self._COLUMNS.values()) - 2 * len(self._COLUMNS)))

    @property
    def title(self) -> Text:
        """The names of the columns."""
        return self._line("job", *self._COLUMNS, style="bold")

    def facts(self, view: View) -> Text:
        """One job."""
        running = view["state"] == "RUNNING"
        speed = amount(view["tokens_per_s"]) if running else NONE
        state = STYLES.get(view["state"], "")
        return self._line(view["name"], view["state"], steps(view), loss(view["loss"]), speed, eta(view), state=state)

    def _line(self, first: str, second: str, *rest: str, style: str = "", state: str = "") -> Text:
        cut = first if len(first) <= self._name else f"{first[: self._name - 1]}…"
        text = Text.assemble(f"{cut:<{self._name}}  ", (f"{second:<9}", state or style), style=style, no_wrap=True)
        for value, size_ in zip(rest, list(self._COLUMNS.values())[1:], strict=True):
            text.append(f"  {value:>{size_}}")
        return text


def remark_with_base(view: View, base: str) -> str:
    """What there is to say of a job, and before it its base model, unless that is said in it."""
    said = remark(view)
    return said if base in said else "; ".join(filter(None, (base, said)))


def indented(note: str) -> list[RenderableType]:
    """What is said below a line, whole; nothing of nothing."""
    return [Padding(Text(note, style="dim", overflow="fold"), (0, 0, 0, 4))] if note else []
