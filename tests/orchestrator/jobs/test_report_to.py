"""Which trackers a job may name, and what is said of those that it may not."""

import pytest
from pydantic import ValidationError

from orchestrator.cluster.cluster_config import ClusterConfig
from orchestrator.jobs import report_to
from orchestrator.jobs.job import JobSpec
from orchestrator.validation.problems import explain

JOB = {"name": "a", "base_model": "a/b", "dataset": {"path": "/a.jsonl"}, "output_dir": "/o"}


@pytest.mark.parametrize("model", [JobSpec, ClusterConfig])
def test_a_wrong_tracker_is_told_the_right_ones(model):
    fields = JOB if model is JobSpec else {}
    for wrong, path, words in (
        (["wandb", "tensorbord"], ("report_to", 1), "did you mean tensorboard?"),
        ("wandb", ("report_to",), "is not a list; allowed: a list of any of tensorboard, wandb, mlflow, trackio"),
    ):
        with pytest.raises(ValidationError) as refused:
            model.model_validate({**fields, "report_to": wrong})
        ((where, message),) = explain(refused.value, {**fields, "report_to": wrong}, model)
        assert where == path
        assert words in message
    for right in ([], ["mlflow", "trackio"]):
        assert model.model_validate({**fields, "report_to": right}).report_to == right


def test_a_tracker_that_is_not_installed_is_told_how_to_get_it(monkeypatch):
    assert report_to.not_installed(["tensorboard"]) == ""
    monkeypatch.setitem(report_to._PACKAGES, "wandb", "no_such_package_anywhere")
    message = report_to.not_installed(["wandb", "tensorboard", "wandb"])
    assert message.startswith("wandb cannot be reported to: no_such_package_anywhere is not installed")
    assert "pip install 'loray[wandb]'" in message
