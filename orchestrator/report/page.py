"""Puts the page together: one document with everything in it, which needs no network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib import resources
from typing import Any

from bokeh.embed import json_item
from bokeh.resources import Resources
from jinja2 import Environment, Template
from markupsafe import Markup

from orchestrator import formatting
from orchestrator.formatting import View
from orchestrator.report import charts
from orchestrator.report.comparison import Result, differing_settings, numbers, results, settings
from orchestrator.report.contents import Contents
from orchestrator.report.timeline_chart import draw
from orchestrator.version import __version__

_MOST_SETTINGS = 12  # that are shown against the result
_MOST_AXES = 256  # whose charts are kept for the next page
_CURVES = {"loss": "loss", "eval_loss": "evaluation loss"}

_ASSETS = resources.files("orchestrator.report") / "assets"


def render(contents: Contents) -> str:
    """The page as HTML. Whatever comes from jobs is text in it, never markup."""
    labels = _labels(contents.jobs)
    paints = charts.colours(len(contents.jobs))
    found = results(contents)
    differing = differing_settings(contents.jobs)
    series = {name: lines for name in _CURVES if (lines := _lines(contents, name, labels, paints))}
    shown = _shown_settings(contents.jobs, differing)
    against = _against_result(contents.jobs, found, shown, labels, paints)
    items = {name: _curves(what) for name, what in _CURVES.items() if name in series}
    items |= {name: chart for name, (chart, _) in against.items()}
    return _template().render(
        contents=contents,
        style=Markup(_asset("page.css")),
        script=Markup(_asset("page.js")),
        library=_library(),
        items=_json(items),
        values=_json(series | {name: points for name, (_, points) in against.items()}),
        curves=[(name, what.capitalize()) for name, what in _CURVES.items() if name in series],
        against=list(against),
        jobs=[
            _row(job, label, paint, found[job["id"]], given)
            for job, label, paint, given in zip(contents.jobs, labels, paints, shown, strict=True)
        ],
        drawn={number for lines in series.values() for number in lines["number"]},
        columns=["job", "state", "step", "loss", "eval loss", "time", *differing],
        counts=_counts(contents.jobs),
        failed=[job for job in contents.jobs if job["state"] in ("FAILED", "CANCELLED")],
        waiting=[job for job in contents.jobs if job["state"] in ("QUEUED", "PAUSED")],
        remarks=[(job, text) for job in contents.jobs if job["state"] == "RUNNING" and (text := _remark(job))],
        gantt=_gantt(contents, labels, paints),
        clock=formatting.clock,
        version=__version__,
    )


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text("utf-8")


@cache
def _template() -> Template:
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_asset("page.html"))


@cache
def _library() -> Markup:
    return Markup("\n".join(Resources(mode="inline", components=["bokeh"]).js_raw))


@cache
def _curves(what: str) -> Any:
    return json_item(charts.curves(what))


@lru_cache(maxsize=_MOST_AXES)
def _setting_against_result(axis: charts.Axis, what: str) -> Any:
    return json_item(charts.setting_against_result(axis, what))


def _lines(contents: Contents, name: str, labels: Sequence[str], paints: Sequence[str]) -> dict[str, list[Any]]:
    """The lines of a chart of curves, column by column; empty where no job has a point.

    `number` is the job's place on the page; what the others are, `charts.curves` says.
    """
    rows = [
        (number, [x for x, _ in points], [y for _, y in points], labels[number], paints[number])
        for number, job in enumerate(contents.jobs)
        if (points := numbers(contents.rows.get(job["id"], ()), name))
    ]
    names = ("number", "xs", "ys", "job", "colour")
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)} if rows else {}


def _json(value: Any) -> Markup:
    """JSON that stands in a script element, which `</script>` would end and `<!--` would change."""
    return Markup(json.dumps(value).replace("<", "\\u003c"))


def _labels(jobs: Sequence[View]) -> list[str]:
    """The names of the jobs; the id behind those that several have."""
    names = [job["name"] for job in jobs]
    return [name if names.count(name) == 1 else f"{name} ({job['id']})" for name, job in zip(names, jobs, strict=True)]


def _counts(jobs: Sequence[View]) -> dict[str, int]:
    states = [job["state"] for job in formatting.by_liveliness(jobs)]
    return {state: states.count(state) for state in dict.fromkeys(states)}


def _remark(job: View) -> str:
    return formatting.remark(job) if "unsaved" in job else ""


def _shown_settings(jobs: Sequence[View], differing: Sequence[str]) -> list[dict[str, Any]]:
    """The settings of each job that tell jobs apart; a path by as much of its end as no other has."""
    shown: list[dict[str, Any]] = [{name: flat.get(name) for name in differing} for flat in map(settings, jobs)]
    for name in differing:
        words: list[str] = [one[name] for one in shown if isinstance(one[name], str)]
        short = formatting.base_names(word for word in words if word.startswith(("/", "~", ".")))
        for one in shown:
            if isinstance(one[name], str):
                one[name] = short.get(one[name], one[name])
    return shown


def _row(job: View, label: str, paint: str, result: Result, shown: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table: texts, and the values by which it is sorted."""
    seconds = formatting.seconds_run(job)
    cells: list[tuple[str, Any]] = [
        (job["state"], job["state"]),
        (formatting.steps(job), job["step"]),
        (formatting.loss(result.loss), result.loss),
        (formatting.loss(result.eval_loss), result.eval_loss),
        (formatting.duration(seconds), seconds),
        *((_short(value), value) for value in shown.values()),  # last: of many settings the table is wider than a page
    ]
    sorted_by = [text if isinstance(value, str | list) else "" if value is None else value for text, value in cells]
    texts = [text for text, _ in cells]
    return {"label": label, "paint": paint, "best": result.best, "cells": list(zip(texts, sorted_by, strict=True))}


def _short(value: Any) -> str:
    if value is None:
        return formatting.NONE
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _against_result(
    jobs: Sequence[View],
    found: Mapping[str, Result],
    shown: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    paints: Sequence[str],
) -> dict[str, tuple[Any, dict[str, list[Any]]]]:
    """A chart and its points for each setting that tells jobs apart, if there are enough of them to see anything."""
    by_evaluation = sum(result.eval_loss is not None for result in found.values()) > 1
    what = "evaluation loss" if by_evaluation else "loss"
    values = [found[job["id"]].eval_loss if by_evaluation else found[job["id"]].loss for job in jobs]
    known = [number for number, value in enumerate(values) if value is not None]
    made = []
    for name in list(shown[0])[:_MOST_SETTINGS] if shown else ():
        given = [number for number in known if shown[number][name] is not None]
        if len(given) > 1 and len({repr(shown[number][name]) for number in given}) > 1:
            chosen = [_plain(shown[number][name]) for number in given]
            axis, places = charts.axis(name, chosen)
            points = {
                "x": places,
                "y": [values[number] for number in given],
                "job": [labels[number] for number in given],
                "colour": [paints[number] for number in given],
                "value": list(map(str, chosen)),
            }
            made.append((_setting_against_result(axis, what), points))
    return {f"setting-{number}": one for number, one in enumerate(made)}


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float) else _short(value)


def _gantt(contents: Contents, labels: Sequence[str], paints: Sequence[str]) -> Markup:
    """Who trained where, as a picture whose texts are escaped where it is drawn; empty where nobody has."""
    if contents.timeline is None or not contents.timeline["stays"]:
        return Markup("")
    names = {job["id"]: label for job, label in zip(contents.jobs, labels, strict=True)}
    coloured = dict(zip(labels, paints, strict=True))
    return Markup(draw(contents.timeline, names, "Places, the jobs on them, and their memory", coloured))
