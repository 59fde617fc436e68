"""The interactive charts of the page, by Bokeh.

They are without values, which the page's script puts in: figures are what costs, and are the same from page to page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

from bokeh.layouts import column
from bokeh.models import ColumnDataSource, DataRange1d, FactorRange, HoverTool, PrintfTickFormatter
from bokeh.models.layouts import LayoutDOM
from bokeh.palettes import Category10, Category20, turbo
from bokeh.plotting import figure

SCALES = tuple(product(("linear", "log"), ("linear", "log")))
"""Scales of the step and of the loss: a chart of curves has a figure for each, of which one is visible."""

_LONGEST = 24  # letters of a label on an axis; from a third on they stand aslant
_TOOLS = "pan,box_zoom,reset,save"
_AROUND = 0.2  # share of a range that is left free around its points, which else would be cut in half
_CLOSEST = 0.12  # share of a range that two ticks are apart at least
_WIDE = 8.0  # ratio of the largest to the smallest value from which on a setting has a logarithmic axis


def colours(count: int) -> list[str]:
    """So many colours that are told apart on light and dark ground, as far as there are so many."""
    if count <= 10:
        return list(Category10[10])[:count]
    return list(Category20[20])[:count] if count <= 20 else list(turbo(count))


def curves(what: str) -> LayoutDOM:
    """Lines over the optimizer step, four times: for each of `SCALES`.

    The source has columns `xs`, `ys`, `job` and `colour`, a row for each line, so that a line is no model of its own.
    """
    source = ColumnDataSource({name: [] for name in ("xs", "ys", "job", "colour")})
    figures = []
    for step_scale, loss_scale in SCALES:
        chart = _figure(
            height=340,
            x_axis_type=step_scale,
            y_axis_type=loss_scale,
            x_axis_label="optimizer step",
            y_axis_label=what,
            visible=(step_scale, loss_scale) == SCALES[0],
        )
        lines = chart.multi_line("xs", "ys", source=source, line_color="colour", line_width=1.8)
        lines.nonselection_glyph = None
        shown = [("job", "@job"), ("step", "$snap_x{0}"), (what, "$snap_y{0.0000}")]
        chart.add_tools(HoverTool(tooltips=shown, line_policy="nearest"))
        chart.x_range, chart.y_range = DataRange1d(only_visible=True), DataRange1d(only_visible=True)
        figures.append(chart)
    together: LayoutDOM = column(*figures, sizing_mode="stretch_width")
    return together


@dataclass(frozen=True)
class Axis:
    """The axis of a setting.

    Attributes:
        name: Of the setting.
        scale: `linear` or `log`, or `words` where values are not numbers.
        marks: Where it has ticks, or the words in their order; without any it chooses its own ticks.
    """

    name: str
    scale: str
    marks: tuple[Any, ...]


def axis(name: str, values: Sequence[Any]) -> tuple[Axis, list[Any]]:
    """The axis that some values of a setting are shown on, and their places on it."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        scale = "log" if min(values) > 0 and max(values) / min(values) >= _WIDE else "linear"
        return Axis(name, scale, tuple(_apart(values, logarithmic=scale == "log"))), list(values)
    words = [_word(str(value)) for value in values]
    return Axis(name, "words", tuple(dict.fromkeys(words))), words


def setting_against_result(setting: Axis, what: str) -> LayoutDOM:
    """One setting against the result: a point for each job.

    The source has columns `x`, `y`, `job`, `colour` and `value` (the setting's, as text).

    Args:
        setting: Its axis.
        what: The result is.
    """
    options = {"height": 230, "x_axis_label": setting.name, "y_axis_label": what}
    if setting.scale == "words":
        chart: LayoutDOM = _figure(**options, x_range=FactorRange(factors=list(setting.marks)))
        if max(map(len, setting.marks)) > _LONGEST // 3:
            chart.xaxis.major_label_orientation = 0.5
    else:
        chart = _figure(**options, x_axis_type=setting.scale)
        chart.x_range = DataRange1d(range_padding=_AROUND)
        chart.xaxis.formatter = PrintfTickFormatter(format="%g")
        if setting.marks:
            chart.xaxis.ticker = list(setting.marks)
    chart.y_range = DataRange1d(range_padding=_AROUND)
    points = ColumnDataSource({name: [] for name in ("x", "y", "job", "colour", "value")})
    chart.scatter("x", "y", source=points, size=10, color="colour", line_color=None)
    chart.add_tools(HoverTool(tooltips=[("job", "@job"), (setting.name, "@value"), (what, "@y{0.0000}")]))
    return chart


def _apart(values: Sequence[float], *, logarithmic: bool) -> list[float]:
    """The values themselves, as ticks of an axis; none if they are too many, or too close for their labels."""
    distinct = sorted(set(values))
    places = [math.log(value) for value in distinct] if logarithmic else distinct
    span = places[-1] - places[0]
    return distinct if all(after - before > _CLOSEST * span for before, after in pairwise(places)) else []


def _word(value: str) -> str:
    """A value as a label: its end, which tells paths apart; never a formula, as Bokeh takes what is between `$$`."""
    short = value if len(value) <= _LONGEST else f"...{value[3 - _LONGEST :]}"
    return short.replace("$", "\uff04")


def _figure(**options: Any) -> figure:
    """A figure as wide as its place; its colours are the page's business, which may be light or dark."""
    return figure(
        sizing_mode="stretch_width",
        min_width=260,
        tools=_TOOLS,
        active_drag="box_zoom",
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_color=None,
        toolbar_location="above",
        **options,
    )
