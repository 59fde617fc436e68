"""Metrics of a live run, scraped by a real Prometheus through Ray's discovery file."""

import json
import re
import socket

import pytest

from orchestrator.reporting.grafana import queries
from orchestrator.reporting.metric_list import METRICS
from support.cluster import wait_until
from support.command import JobFiles
from support.prometheus import PROMETHEUS, prometheus
from support.talking import save_talking_base
from support.tiny import token_rows

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("served"),
    pytest.mark.skipif(PROMETHEUS is None, reason="no Prometheus is installed"),
]
# Nothing is lost and no memory runs out in a run like this.
NOT_HERE = {"loray_actors_lost", "loray_actor_out_of_memory"}


def test_every_query_of_the_dashboard_has_data_and_no_label_names_a_job(served, tmp_path):
    files = JobFiles(tmp_path, save_talking_base(tmp_path), token_rows(24))
    (tmp_path / "broken.jsonl").write_text("{oops\n")
    bad = files.write("metric-bad", data="broken.jsonl")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with prometheus(tmp_path, served.path / "ray" / "prom_metrics_service_discovery.json", port) as server:
        done = served.run("submit", "--wait", files.write("metric-good"), bad)
        assert done.returncode == 1, done.stderr
        assert served.run("retry", "metric-bad").returncode == 0
        assert served.run("ask", "metric-good", "hello", "--max-tokens", "4").returncode == 0
        wait_until(lambda: not missing(server), every=1)  # Ray takes ten seconds to tell
        series = server.series('{__name__=~"ray_loray_.*"}')
    assert {one["__name__"] for one in series} <= exported()
    assert not re.search(r"metric-(good|bad)", json.dumps(series))


def missing(server):
    """The queries without an answer."""
    asked = [query.replace("$__rate_interval", "5m") for metric in METRICS for query, _ in queries(metric)]
    return [query for query in asked if not any(name in query for name in NOT_HERE) and not server.query(query)]


def exported():
    """The names under which the metrics of the list may appear."""
    ends = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
    return {f"ray_{metric.name}{end}" for metric in METRICS for end in ends[metric.kind]}
