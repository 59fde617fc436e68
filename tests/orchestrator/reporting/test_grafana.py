"""The dashboard against Grafana's own types: the models that Grafana Labs generates from its schema."""

import copy
import inspect
import json

import pytest
from pydantic import ConfigDict, ValidationError, validate_call

from orchestrator.reporting.grafana import dashboard

pytest.importorskip("grafana_foundation_sdk", reason="needs Python 3.11")
from grafana_foundation_sdk.cog import plugins, runtime
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, prometheus, timeseries, units
from grafana_foundation_sdk.models import dashboard as models


@pytest.fixture(autouse=True)
def _values_are_checked(monkeypatch):
    """The models only say what they hold: here values of another type are refused or made fit, which differs then."""
    for module in (models, common, prometheus, timeseries):
        for _, model in inspect.getmembers(module, inspect.isclass):
            if "from_json" in vars(model):
                checked = validate_call(model.__init__, config=ConfigDict(arbitrary_types_allowed=True))
                monkeypatch.setattr(model, "__init__", checked)
    plugins.register_default_plugins()


def not_grafanas(value, understood, path="dashboard"):
    """The parts that Grafana's types do not have, or have with another value."""
    if isinstance(value, dict) and isinstance(understood, dict):
        return [
            found for key, part in value.items() for found in not_grafanas(part, understood.get(key), f"{path}.{key}")
        ]
    if isinstance(value, list) and isinstance(understood, list):
        pairs = enumerate(zip(value, understood, strict=True))
        return [found for i, (part, other) in pairs for found in not_grafanas(part, other, f"{path}[{i}]")]
    return [] if value == understood else [path]


def read_by_grafana(value):
    """What is left of a dashboard in Grafana's types."""
    return json.loads(json.dumps(models.Dashboard.from_json(value), cls=JSONEncoder))


def test_grafana_understands_all_of_the_dashboard():
    made = dashboard()
    assert not_grafanas(made, read_by_grafana(made)) == []
    known = {value for _, value in inspect.getmembers(units) if isinstance(value, str)}
    for panel in made["panels"]:
        if panel["type"] != "row":
            assert runtime.panelcfg_config(panel["type"]) is not None
            assert panel["fieldConfig"]["defaults"]["unit"] in known


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (lambda panel: panel["fieldConfig"]["defaults"].update(units="s"), "fieldConfig.defaults.units"),
        (lambda panel: panel["targets"][0].update(legend="{{actor}}"), "targets[0].legend"),
        (lambda panel: panel["gridPos"].update(w="8"), "gridPos.w"),
        (lambda panel: panel["options"]["legend"].update(placement="under"), None),
    ],
)
def test_what_grafana_would_not_understand_is_found(broken, found):
    made = copy.deepcopy(dashboard())
    broken(made["panels"][1])
    if found is None:
        with pytest.raises(ValidationError, match="placement"):
            read_by_grafana(made)
    else:
        assert not_grafanas(made, read_by_grafana(made)) == [f"dashboard.panels[1].{found}"]
