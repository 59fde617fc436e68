"""The list of metrics: names with units, labels that do not grow, and a dashboard of all of them."""

import json
import re

from orchestrator.reporting.grafana import dashboard, text
from orchestrator.reporting.metric_list import METRICS
from support.repository import ROOT

BOUNDED = {"state", "actor", "kind", "cause"}


def test_names_tell_units_and_labels_do_not_grow_with_jobs():
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"loray_[a-z_]+", metric.name)
        unit = {"tokens/s": "tokens_per_second"}.get(metric.unit, metric.unit)
        assert metric.name.endswith(unit), metric
        assert set(metric.tags) <= BOUNDED, metric
        assert (metric.kind == "histogram") == bool(metric.boundaries)
        assert list(metric.boundaries) == sorted(set(metric.boundaries))


def test_the_dashboard_in_configs_is_made_from_the_list():
    assert (ROOT / "configs" / "grafana" / "loray.json").read_text() == text()
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    assert [panel["description"] for panel in panels] == [metric.description for metric in METRICS]
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])
    taken = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard()["panels"]]
    assert len(set(taken)) == len(taken)
    assert json.dumps(dashboard()).count('"expr"') == sum(1 + (metric.kind == "histogram") for metric in METRICS)
