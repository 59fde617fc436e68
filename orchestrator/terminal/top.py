"""The whole cluster on one screen: actors with their memory, jobs with their progress, what happened of late."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.formatting import View, amount, base_names, by_liveliness, plural, remark, share, size
from orchestrator.terminal.curve import Sparkline
from orchestrator.terminal.display import JobLines, indented, remark_with_base, state_text

_EVENTS = 6  # that are shown on a screen of limited height
_SPARK = 24


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
        lines = JobLines(self.jobs, options.max_width)
        bases = base_names(view["base_model"] for view in self.jobs)
        actors = [_actor(actor) for actor in self.actors]
        running = [_job(view, lines, bases) for view in by_liveliness(self.jobs) if view["state"] == "RUNNING"]
        waiting = [_job(view, lines, bases) for view in by_liveliness(self.jobs) if view["state"] != "RUNNING"]
        events: list[RenderableType] = [_event(event) for event in self.events]
        title = Text(self.title, overflow="fold")
        if self.height is not None:
            height = self.height - len(console.render_lines(title, options, pad=False)) - 3  # a title, two empty lines
            events = events[-min(_EVENTS, height // 4) :]
            actors = _fitting(actors, height // 3, "actor", console, options)
            room = max(3, height - _lines([*actors, *events], console, options))
            queue = min(room // 3 + 1, _lines(waiting, console, options))  # lines that it has in any case
            running = _fitting(running, room - queue, "running job", console, options)
            room -= _lines(running, console, options)
            waiting = _fitting(waiting, room, "waiting job", console, options)
        yield title
        yield from actors
        yield Text()
        if running or waiting:
            yield lines.title
            yield from running
            yield from waiting
        else:
            yield Text("nothing runs or waits", style="dim")
        if events:
            yield Text()
            yield from events


def _lines(parts: Sequence[RenderableType], console: Console, options: ConsoleOptions) -> int:
    return sum(len(console.render_lines(part, options, pad=False)) for part in parts)


def _fitting(
    parts: list[RenderableType], room: int, noun: str, console: Console, options: ConsoleOptions
) -> list[RenderableType]:
    """As many as fit into so many lines, and how many are left out."""
    kept: list[RenderableType] = []
    used = 0
    for number, part in enumerate(parts):
        needed = _lines([part], console, options)
        if used + needed > room - (number < len(parts) - 1):  # a line to count the others
            return [*kept, Text(f"... and {plural(len(parts) - number, f'more {noun}')}", style="dim")]
        kept.append(part)
        used += needed
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
