"""What the demo shows: its story in lines, and below them, on a terminal, one bar for each job."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

from orchestrator.formatting import View, amount, progress_line, steps
from orchestrator.terminal import display

COLUMNS, LINES = 100, 32  # of a recorded terminal
_LINE_SECONDS = 15.0  # between two lines about progress in a log
_FRAME_SECONDS = 4.0  # between two pictures of a recording, unless something is said

Frame = tuple[float, list[list[Segment]]]
"""A moment, in seconds, and the lines of the terminal at it."""


class Screen:
    """A context manager. `say` is for the story, `update` for the jobs' progress.

    Attributes:
        frames: Pictures of a terminal, each with the second at which it was taken.
    """

    def __init__(self, *, recorded: bool) -> None:
        """Nothing is shown yet.

        Args:
            recorded: Keep pictures in `frames`.
        """
        self._console = display.make_console()
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._states: dict[str, str] = {}
        self._last_line = 0.0
        self._started = time.monotonic()
        self._recorded = recorded
        self._said: list[RenderableType] = []
        self._bars: RenderableType = Text()
        self.frames: list[Frame] = []

    @property
    def seconds(self) -> float:
        """Since the demo began."""
        return time.monotonic() - self._started

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.__exit__(kind, error, trace)

    def say(self, what: str | Text) -> None:
        """Tell what happens, with the time since the beginning."""
        clock = f"{int(self.seconds) // 60}:{int(self.seconds) % 60:02d} "
        self.show(Text.assemble((clock, "dim"), what))

    def show(self, what: RenderableType) -> None:
        """Print above the bars."""
        self._console.print(what, soft_wrap=False)
        self._said.append(what)
        self._take_picture()

    def update(self, views: Sequence[View], actors: Sequence[View]) -> None:
        """Take the newest state of all jobs and actors."""
        size = (COLUMNS, LINES) if self._recorded else self._console.size
        self._bars = display.progress_table(views, actors, *size)
        if self._console.is_terminal:
            self._live.update(self._bars, refresh=True)
        else:
            self._write_lines(views, actors)
        if not self.frames or self.seconds - self.frames[-1][0] > _FRAME_SECONDS:
            self._take_picture()

    def clear(self) -> None:
        """The bars are done with."""
        self._bars = Text()
        self._live.update(self._bars, refresh=self._console.is_terminal)

    def _write_lines(self, views: Sequence[View], actors: Sequence[View]) -> None:
        """A line for each change of state, and now and then one about all that run."""
        for view in views:
            if self._states.get(view["id"]) != view["state"]:
                self._states[view["id"]] = view["state"]
                self._console.print(Text(f"     {progress_line(view)}"), soft_wrap=True)
        running = [f"{view['name']} {steps(view)}" for view in views if view["state"] == "RUNNING"]
        if running and self.seconds - self._last_line > _LINE_SECONDS:
            self._last_line = self.seconds
            speed = sum(actor["tokens_per_s"] or 0 for actor in actors)
            self._console.print(Text(f"     {amount(speed)} tokens/s: {', '.join(running)}"), soft_wrap=True)

    def _take_picture(self) -> None:
        if not self._recorded:
            return
        paper = Console(width=COLUMNS, file=io.StringIO(), force_terminal=True, highlight=False)
        bars = paper.render_lines(self._bars)
        said = paper.render_lines(Group(*self._said))[-(LINES - len(bars) - 1) :]
        blank = [Segment(" " * COLUMNS)]
        lines = [*said, blank, *bars]
        self.frames.append((self.seconds, [*lines, *[blank] * (LINES - len(lines))]))
