"""A curve in characters: of braille dots over several lines, or of blocks in one; of plain ASCII where it must be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-~=+*#"
_BRAILLE = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a cell, by row and column
_LABEL = 9  # columns of an axis label and the line beside it

Point = tuple[float, float]
"""A step and the loss there."""


class Sparkline:
    """Values in one line of blocks, the highest as high as a line."""

    def __init__(self, values: Sequence[float], width: int, style: str = "") -> None:
        """Nothing is drawn yet.

        Args:
            values: In their order; what is not finite is left out.
            width: Most columns; with more values, each column has the mean of its own.
            style: Of rich.
        """
        self._values = [value for value in values if math.isfinite(value)]
        self._width, self._style = width, style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        blocks = _ASCII_BLOCKS if options.ascii_only else _BLOCKS
        values = _means(self._values, min(self._width, options.max_width))
        low, high = min(values, default=0.0), max(values, default=0.0)
        span = high - low
        marks = [blocks[round((value - low) / span * (len(blocks) - 1)) if span else 0] for value in values]
        yield Text("".join(marks), style=self._style, end="")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        width = min(self._width, len(self._values), options.max_width)
        return Measurement(width, width)


def _means(values: Sequence[float], count: int) -> list[float]:
    if len(values) <= count or count < 1:
        return list(values)
    cuts = [number * len(values) // count for number in range(count + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]


@dataclass(frozen=True)
class Curve:
    """Losses over steps, with the evaluation losses as marks on top.

    Attributes:
        losses: In the order of steps; what is not finite is left out.
        evaluations: The same of evaluations.
        height: Lines of the picture, the axis not counted.
    """

    losses: Sequence[Point]
    evaluations: Sequence[Point] = ()
    height: int = 10

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        losses = [point for point in self.losses if math.isfinite(point[1])]
        evaluations = [point for point in self.evaluations if math.isfinite(point[1])]
        columns = min(options.max_width, 100) - _LABEL - 1
        if not losses or columns < 8:
            return
        frame = _Frame.around([*losses, *evaluations], columns, self.height)
        line, crossing, cross = ("|", "+", "-") if options.ascii_only else ("│", "└", "─")
        dots = frame.dots(losses)
        marks = {frame.cell(point) for point in evaluations}
        for row in range(self.height):
            value = frame.high - (frame.high - frame.low) * row / (self.height - 1)
            label = f"{value:>{_LABEL - 1}.4g}" if row % 3 == 0 or row == self.height - 1 else " " * (_LABEL - 1)
            text = Text(label + line, no_wrap=True)
            for column in range(columns):
                bits = dots.get((row, column), 0)
                if (row, column) in marks:
                    text.append("o", style="bold yellow")
                elif bits:
                    text.append("*" if options.ascii_only else chr(_BRAILLE + bits), style="cyan")
                else:
                    text.append(" ")
            text.rstrip()
            yield text
        first, last = f"{frame.first:.0f}", f"step {frame.last:.0f}"
        yield Text(" " * (_LABEL - 1) + crossing + cross * columns, no_wrap=True)
        yield Text(" " * _LABEL + first + last.rjust(columns - len(first)), no_wrap=True)


@dataclass(frozen=True)
class _Frame:
    """Where on a grid of cells, each of 2 x 4 dots, a point lies."""

    first: float
    last: float
    low: float
    high: float
    columns: int
    rows: int

    @classmethod
    def around(cls, points: Sequence[Point], columns: int, rows: int) -> _Frame:
        steps, values = [step for step, _ in points], [value for _, value in points]
        return cls(min(steps), max(steps), min(values), max(values), columns, rows)

    def dot(self, point: Point) -> tuple[float, float]:
        """Row and column among the dots, fractions included."""
        across = (point[0] - self.first) / (self.last - self.first or 1.0)
        down = (self.high - point[1]) / (self.high - self.low or 1.0)
        return down * (4 * self.rows - 1), across * (2 * self.columns - 1)

    def cell(self, point: Point) -> tuple[int, int]:
        """Row and column among the cells."""
        row, column = self.dot(point)
        return round(row) // 4, round(column) // 2

    def dots(self, points: Sequence[Point]) -> dict[tuple[int, int], int]:
        """The dots of a line through points in order, as bits by cell."""
        found: dict[tuple[int, int], int] = {}
        for start, end in zip(points, [*points[1:], points[-1]], strict=True):
            (row, column), (to_row, to_column) = self.dot(start), self.dot(end)
            pieces = max(1, math.ceil(max(abs(to_row - row), abs(to_column - column))))
            for piece in range(pieces + 1):
                part = piece / pieces
                y, x = round(row + part * (to_row - row)), round(column + part * (to_column - column))
                found[y // 4, x // 2] = found.get((y // 4, x // 2), 0) | _DOTS[y % 4][x % 2]
        return found
