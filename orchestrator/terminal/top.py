"""The whole cluster on one screen: actors with their memory, jobs with their progress, what happened of late."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.segment import Segment, SegmentLines
from rich.table import Table
from rich.text import Text

from orchestrator.formatting import View, amount, base_names, by_liveliness, plural, remark, share, size
from orchestrator.terminal.curve import Sparkline
from orchestrator.terminal.display import JobLines, indented, remark_with_base, state_text

_EVENTS = 6  # that are shown on a screen of limited height
_SPARK = 24

Lines = list[list[Segment]]
"""A part of the picture, drawn once: how high it is decides where it has room."""


@dataclass(frozen=True)
class TopPicture:
    """What `loray top` shows.

    Attributes:
        title: Its first line.
        actors: Every place for an actor.
        jobs: Those that are not over.
        events: The latest, oldest first.
        height: Lines that there are; what does not fit is counted. None: any number.
    """

    title: str
    actors: Sequence[View]
    jobs: Sequence[View]
    events: Sequence[View]
    height: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        def drawn(part: RenderableType) -> Lines:
            return console.render_lines(part, options, pad=False)

        table = JobLines(self.jobs, options.max_width)
        bases = base_names(view["base_model"] for view in self.jobs)
        views = by_liveliness(self.jobs)
        train = [view for view in views if view["state"] == "RUNNING"]
        wait = [view for view in views if view["state"] != "RUNNING"]
        title = drawn(Text(self.title, overflow="fold"))
        # no more than can have room, of hundreds perhaps
        actors = [drawn(_actor(actor)) for actor in self.actors[: self.height]]
        running = [drawn(_job(view, table, bases)) for view in train[: self.height]]
        waiting = [drawn(_job(view, table, bases)) for view in wait[: self.height]]
        latest = self.events
        if self.height is not None:
            height = self.height - len(title) - 3  # a title, two empty lines
            latest = latest[-min(_EVENTS, height // 4) :]
            actors = _fitting(actors, len(self.actors), height // 3, "actor", drawn)
            room = max(3, height - _count(actors) - len(latest))
            queue = min(room // 3 + 1, _count(waiting))  # lines that it has in any case
            running = _fitting(running, len(train), room - queue, "running job", drawn)
            waiting = _fitting(waiting, len(wait), room - _count(running), "waiting job", drawn)
        empty = drawn(Text())
        jobs = [drawn(table.title), *running, *waiting]
        if not running and not waiting:
            jobs = [drawn(Text("nothing runs or waits", style="dim"))]
        events = [empty, *(drawn(_event(event)) for event in latest)] if latest else []
        parts = [title, *actors, empty, *jobs, *events]
        yield SegmentLines([line for part in parts for line in part], new_lines=True)


def _count(parts: Sequence[Lines]) -> int:
    return sum(map(len, parts))


def _fitting(
    parts: list[Lines], total: int, room: int, noun: str, drawn: Callable[[RenderableType], Lines]
) -> list[Lines]:
    """As many as fit into so many lines, and how many of all are left out."""
    kept: list[Lines] = []
    for number, part in enumerate(parts):
        if _count(kept) + len(part) > room - (number < total - 1):  # a line to count the others
            return [*kept, drawn(Text(f"... and {plural(total - number, f'more {noun}')}", style="dim"))]
        kept.append(part)
    return kept


def _actor(actor: View) -> RenderableType:
    first = Text.assemble(str(actor["name"]), "  ", state_text(actor["state"]))
    if actor["state"] == "ready":
        first.append(f"  {amount(actor['tokens_per_s'])} tokens/s in all")
    if actor["jobs"]:
        first.append(f"  {plural(len(actor['jobs']), 'job')}")
    parts: list[RenderableType] = [first]
    if actor["memory_used"]:
        limit = actor["memory_limit"]
        of = f" of {size(limit)}" if limit else ""
        text = f"{size(actor['memory_used'])}{of}, peak {size(actor['memory_peak'])}"
        full = bool(limit) and actor["memory_peak"] > limit
        parts.append(_bar("memory", actor["memory_used"] / limit if limit else 0.0, Text(text), warns=full))
    return Group(*parts, *indented(actor["reason"] or ""))


def _job(view: View, lines: JobLines, bases: dict[str, str]) -> RenderableType:
    own = bases[view["base_model"]] if len(bases) > 1 else ""
    if view["state"] != "RUNNING":
        return Group(lines.facts(view), *indented(remark_with_base(view, own)))
    curve = Sparkline(view["loss_curve"] or (), _SPARK, "cyan")
    bar = _bar(f"{share(view):>6.0%}", share(view), curve, Text(own, style="dim"))
    return Group(lines.facts(view), bar, *indented(remark(view)))


def _bar(label: str, part: float, *beside: RenderableType, warns: bool = False) -> RenderableType:
    row = Table.grid(padding=(0, 1))
    row.add_column(no_wrap=True)
    row.add_column(width=24)
    for _ in beside:
        row.add_column(no_wrap=True, overflow="ellipsis")
    style = "red" if warns else "green"
    bar = ProgressBar(total=1.0, completed=part, width=24, complete_style=style, finished_style=style)
    row.add_row(Text(label, style="dim"), bar, *beside)
    return Padding(row, (0, 0, 0, 4))


def _event(event: View) -> Text:
    when = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    text = Text.assemble((when, "dim"), f"  {event['name']}: {event['message']}", no_wrap=True)
    text.overflow = "ellipsis"
    return text
