"""MLflow: MLFLOW_TRACKING_URI, else SQLite in the cluster's folder; MLFLOW_EXPERIMENT_NAME names the experiment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from urllib.parse import urlsplit

os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the metrics wait in their file, and are tried again

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from orchestrator.jobs.states import JobState
from orchestrator.tracking.tracker import PROJECT, Point, Run, RunIdentity, flat

_ID_TAG = "loray.run"
_LONGEST_VALUE = 500  # characters, as the oldest servers allow
_MOST_PARAMS, _MOST_METRICS, _MOST_POINTS = 100, 1000, 100  # in one request
_STATUS = {JobState.SUCCEEDED: "FINISHED", JobState.FAILED: "FAILED", JobState.CANCELLED: "KILLED"}


def open_run(identity: RunIdentity) -> Run:
    """Begin a run, or go on with the one that bears this id as a tag."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{identity.storage / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    runs = client.search_runs([experiment], f"tags.`{_ID_TAG}` = '{identity.id}'", max_results=1)
    if runs:
        run_id = runs[0].info.run_id
        client.update_run(run_id, status="RUNNING")
        return _MlflowRun(client, run_id)
    tags = {_ID_TAG: identity.id, "loray.output_dir": str(identity.folder)}
    run_id = client.create_run(experiment, run_name=identity.name, tags=tags).info.run_id
    params = [Param(key, str(value)[:_LONGEST_VALUE]) for key, value in flat(identity.settings).items()]
    for start in range(0, len(params), _MOST_PARAMS):
        client.log_batch(run_id, params=params[start : start + _MOST_PARAMS])
    return _MlflowRun(client, run_id)


class _MlflowRun:
    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self._run_id = client, run_id
        # a database knows a value again that it has, files take it twice
        self.most_at_once = 1 if urlsplit(client.tracking_uri).scheme in ("", "file") else _MOST_POINTS

    def log(self, points: Sequence[Point]) -> None:
        metrics = [
            Metric(name, value, round(point.time * 1000), point.step)
            for point in points
            for name, value in point.values.items()
        ]
        for start in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + _MOST_METRICS])

    def flush(self) -> None:
        """Points were sent when they came."""

    def finish(self, state: JobState, reason: str | None, _step: int) -> None:
        if reason:
            self._client.set_tag(self._run_id, "loray.reason", reason)
        self._client.set_terminated(self._run_id, _STATUS[state])

    def close(self) -> None:
        """Nothing is held open."""
