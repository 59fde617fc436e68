"""The interactive charts of the page, by Bokeh."""

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

Points = Sequence[tuple[float, float]]

SCALES = tuple(product(("linear", "log"), ("linear", "log")))
"""Scales of the step and of the loss: a chart of curves has a figure for each, of which one is visible."""

_LONGEST = 24  # letters of a label on an axis; from a third on they stand aslant
_TOOLS = "pan,box_zoom,reset,save"
_AROUND = 0.2  # share of a range that is left free around its points, which else would be cut in half
_CLOSEST = 0.12  # share of a range that two ticks are apart at least
_WIDE = 8.0  # ratio of the largest to the smallest value from which on a setting has a logarithmic axis


@dataclass(frozen=True)
class Series:
    """One line: of a job, by its place among the jobs of the page."""

    job: int
    label: str
    colour: str
    points: Points


def colours(count: int) -> list[str]:
    """So many colours that are told apart on light and dark ground, as far as there are so many."""
    if count <= 10:
        return list(Category10[10])[:count]
    return list(Category20[20])[:count] if count <= 20 else list(turbo(count))


def curves(series: Sequence[Series], what: str) -> LayoutDOM:
    """Lines over the optimizer step, four times: for each of `SCALES`; the lines are in the order of `series`."""
    sources = [_source(one.points) for one in series]
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
        for one, source in zip(series, sources, strict=True):
            line = chart.line("x", "y", source=source, color=one.colour, line_width=1.8, name=one.label)
            line.nonselection_glyph = None
        chart.add_tools(
            HoverTool(tooltips=[("job", "$name"), ("step", "@x"), (what, "@raw{0.0000}")], line_policy="nearest")
        )
        chart.x_range, chart.y_range = DataRange1d(only_visible=True), DataRange1d(only_visible=True)
        figures.append(chart)
    together: LayoutDOM = column(*figures, sizing_mode="stretch_width")
    return together


def setting_against_result(
    name: str, values: Sequence[Any], result: Sequence[float], labels: Sequence[str], paints: Sequence[str], what: str
) -> LayoutDOM:
    """One setting against the result: a point for each job.

    Args:
        name: Of the setting.
        values: It has, by job.
        result: Of each job.
        labels: Of the jobs.
        paints: Their colours.
        what: The result is.
    """
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    data: dict[str, Any] = {"y": list(result), "job": list(labels), "colour": list(paints)}
    data["value"] = [str(value) for value in values]
    if numeric:
        scale = "log" if min(values) > 0 and max(values) / min(values) >= _WIDE else "linear"
        data["x"] = list(values)
        chart: LayoutDOM = _figure(height=230, x_axis_type=scale, x_axis_label=name, y_axis_label=what)
        chart.x_range = DataRange1d(range_padding=_AROUND)
        chart.xaxis.formatter = PrintfTickFormatter(format="%g")
        if ticks := _apart(values, logarithmic=scale == "log"):
            chart.xaxis.ticker = ticks
    else:
        data["x"] = [_factor(value) for value in data["value"]]
        factors = list(dict.fromkeys(data["x"]))
        chart = _figure(height=230, x_range=FactorRange(factors=factors), x_axis_label=name, y_axis_label=what)
        if max(map(len, factors)) > _LONGEST // 3:
            chart.xaxis.major_label_orientation = 0.5
    chart.y_range = DataRange1d(range_padding=_AROUND)
    chart.scatter("x", "y", source=ColumnDataSource(data), size=10, color="colour", line_color=None)
    chart.add_tools(HoverTool(tooltips=[("job", "@job"), (name, "@value"), (what, "@y{0.0000}")]))
    return chart


def _apart(values: Sequence[float], *, logarithmic: bool) -> list[float]:
    """The values themselves, as ticks of an axis; none if they are too many, or too close for their labels."""
    distinct = sorted(set(values))
    places = [math.log(value) for value in distinct] if logarithmic else distinct
    span = places[-1] - places[0]
    return distinct if all(after - before > _CLOSEST * span for before, after in pairwise(places)) else []


def _factor(value: str) -> str:
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


def _source(points: Points) -> ColumnDataSource:
    x, y = zip(*points, strict=True) if points else ((), ())
    return ColumnDataSource({"x": list(x), "y": list(y), "raw": list(y)})
