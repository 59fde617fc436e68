"""What happens when Ray, on a machine that has much else to do, is not up in the time that it gives itself."""

import subprocess
from types import SimpleNamespace

import pytest
import ray

from gpu_actor.contract.errors import ClusterUnavailableError
from orchestrator.control import launch

SLOW = Exception("The current node timed out during startup. This could happen because some of the raylet failed")
STARTED = SimpleNamespace(dashboard_url="127.0.0.1:8265", address_info={"gcs_address": "127.0.0.1:6379"})


@pytest.fixture
def answers(monkeypatch):
    """What each call of `ray.init` does, in turn; a Ray that is slow cannot be ordered."""
    left, started = [], []

    def init(**_):
        answer = left.pop(0)
        if answer is SLOW:
            started.append(subprocess.Popen(["sleep", "300"]))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ray, "init", init)
    for name in ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")
    yield left
    assert [process.wait(10) for process in started] == [-9] * len(started)  # nothing stays of those that were slow


def test_ray_is_started_once_more_where_it_was_too_slow(answers):
    without_dashboard = Exception(
        "\n\nThe last 20 lines of /tmp/ray/logs/dashboard.log (it contains the error message)"
    )
    answers += [SLOW, without_dashboard, STARTED]
    assert launch._start_ray().address == "127.0.0.1:6379"
    assert answers == []


def test_after_some_tries_a_person_is_told(answers):
    answers += [SLOW] * 3
    with pytest.raises(ClusterUnavailableError, match="is the machine very busy"):
        launch._start_ray()


def test_other_faults_are_no_reason_to_try_again(answers):
    answers += [ValueError("no such option"), STARTED]
    with pytest.raises(ValueError, match="no such option"):
        launch._start_ray()
    assert answers == [STARTED]
