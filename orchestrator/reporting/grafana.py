"""A Grafana dashboard of every metric in the list; the file in `configs/grafana` is what this module prints."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.reporting.metric_list import METRICS, Metric

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_UNITS = {"": "short", "bytes": "bytes", "seconds": "s", "tokens": "short", "ratio": "percentunit", "tokens/s": "short"}
_WIDTH, _HEIGHT, _ACROSS = 8, 7, 3
_QUANTILES = (0.5, 0.95)


def queries(metric: Metric) -> list[tuple[str, str]]:
    """What a panel asks Prometheus for.

    Args:
        metric: Of the list.

    Returns:
        Expressions, each with the legend of its lines.
    """
    name = f"ray_{metric.name}"
    legend = " ".join(f"{{{{{tag}}}}}" for tag in metric.tags)
    by = f" by ({', '.join(metric.tags)})" if metric.tags else ""
    if metric.kind == "gauge":
        return [(f"max{by} ({name})", legend or metric.title)]
    if metric.kind == "counter":
        return [(f"sum{by} (rate({name}_total[$__rate_interval]))", legend or metric.title)]
    rate = f"sum by (le) (rate({name}_bucket[$__rate_interval]))"
    return [(f"histogram_quantile({q}, {rate})", f"{q * 100:g} %") for q in _QUANTILES]


def dashboard() -> dict[str, Any]:
    """The dashboard, as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for group in dict.fromkeys(metric.group for metric in METRICS):
        panels.append(_row(group, len(panels) + 1, top))
        members = [metric for metric in METRICS if metric.group == group]
        for number, metric in enumerate(members):
            place = {"x": number % _ACROSS * _WIDTH, "y": top + 1 + number // _ACROSS * _HEIGHT}
            panels.append(_panel(metric, len(panels) + 1, {**place, "w": _WIDTH, "h": _HEIGHT}))
        top += 1 + -(-len(members) // _ACROSS) * _HEIGHT
    source = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return {
        "uid": "loray",
        "title": "Loray",
        "tags": ["loray", "ray"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [source]},
        "annotations": {"list": []},
        "links": [],
        "panels": panels,
    }


def _row(title: str, number: int, top: int) -> dict[str, Any]:
    place = {"x": 0, "y": top, "w": _WIDTH * _ACROSS, "h": 1}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}


def _panel(metric: Metric, number: int, place: dict[str, int]) -> dict[str, Any]:
    unit = _UNITS[metric.unit]
    targets = [
        {"refId": chr(ord("A") + i), "expr": expression, "legendFormat": legend, "datasource": _SOURCE}
        for i, (expression, legend) in enumerate(queries(metric))
    ]
    return {
        "id": number,
        "type": "timeseries",
        "title": f"{metric.title} per second" if metric.kind == "counter" else metric.title,
        "description": metric.description,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}},
        "targets": targets,
    }


def text() -> str:
    """The file of the dashboard."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    print(text(), end="")
