"""The picture of a real run: who was where when from a real store, and memory lines that stay small."""

import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from gpu_actor.contract.config import DatasetConfig
from gpu_actor.contract.errors import LorayError
from gpu_actor.contract.report import ActorPhase, ActorReport
from orchestrator.cli import jobs
from orchestrator.cli.app import app
from orchestrator.cli.chart import write_chart
from orchestrator.jobs.job import JobSpec
from orchestrator.jobs.states import JobState
from orchestrator.report.timeline_chart import draw
from orchestrator.reporting.timeline import _MOST_POINTS, MemoryLine, Timeline, place_of
from orchestrator.store.store import Store

FIRST, SECOND = "tiny@cpu:0#0000", "tiny@3f9a12/cuda:1#1111"


@pytest.fixture
def store(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/loray.db")
    names = [
        JobSpec(name=name, base_model="org/m", dataset=DatasetConfig(path="/d"), output_dir=f"/o/{name}")
        for name in ("one", "two")
    ]
    store.add(names, "r")
    yield store
    store.close()


def ids(store):
    return [job.id for job in store.jobs()]


def test_every_assignment_is_a_stay_that_ends_when_the_job_leaves(store):
    one, two = ids(store)
    before = time.time()
    store.assign(one, FIRST, "boot")
    store.assign(two, FIRST, "boot")
    store.move(one, JobState.QUEUED, "taken off")
    store.move(one, JobState.PAUSED, "paused while it waited")
    store.move(one, JobState.QUEUED, "resumed")
    store.assign(one, SECOND, "boot")
    store.move(one, JobState.SUCCEEDED, "done")
    stays = store.stays()
    assert [(stay.job_id, stay.actor, stay.until is None) for stay in stays] == [
        (one, FIRST, False),
        (two, FIRST, True),
        (one, SECOND, False),
    ]
    assert before <= stays[0].since <= stays[0].until <= stays[2].since <= stays[2].until <= time.time()
    view = Timeline(store).view([one])
    assert [stay["place"] for stay in view["stays"]] == ["cpu:0", "3f9a12/cuda:1"]


def test_the_memory_of_a_place_is_the_share_of_its_limit(store):
    timeline = Timeline(store)
    report = ActorReport("a", "boot", ActorPhase.READY, memory_limit=1000, memory_used=250)
    timeline.note([("cpu:0", report), ("cpu:1", ActorReport("b", "boot", ActorPhase.LOADING))])
    timeline.note([("cpu:0", report)])
    ((name, points),) = timeline.view([])["memory"].items()
    assert (name, [share for _, share in points]) == ("cpu:0", [0.25])
    json.dumps(timeline.view(ids(store)))  # plain values


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.integers(1, 200))
def test_a_memory_line_stays_small_in_order_and_keeps_its_peak(shares, times):
    line = MemoryLine()
    for number in range(len(shares) * times):
        line.add(float(number), shares[number % len(shares)])
    assert len(line.points) <= _MOST_POINTS
    assert line.points == sorted(line.points, key=lambda point: point[0])
    assert max(share for _, share in line.points) >= max(shares) - 0.005


def test_the_picture_has_each_stay_and_the_memory_of_its_place():
    view = {
        "now": 130.0,
        "stays": [
            {"job_id": "1", "place": "cpu:0", "since": 100.0, "until": 110.0},
            {"job_id": "1", "place": "cpu:1", "since": 112.0, "until": None},
        ],
        "memory": {"cpu:0": [(50.0, 0.9), (90.0, 0.2), (105.0, 0.5), (500.0, 0.7)], "gone": [(100.0, 1.0)]},
    }
    text = draw(view, {"1": "one"}, "Loray")
    assert re.findall(r"<title>(one: [^<]*)", text) == ["one: 0s to 10s", "one: 12s to 30s"]
    assert "memory in use" in text
    assert "gone" not in text
    low, *_ = re.findall(r'<polyline class="memory" points="110.0,(\S+) 110.0,(\S+) ', text)
    assert float(low[0]) - float(low[1]) == pytest.approx(0.2 * 22, abs=0.1)  # what was in use when the picture begins
    assert "memory" not in draw({**view, "memory": {}}, {"1": "one"}, "").partition("</style>")[2]
    assert draw({"now": 0.0, "stays": [], "memory": {}}, {}, "none").startswith("<svg")


def test_list_draws_the_jobs_that_it_shows(tmp_path, monkeypatch):
    class Cluster:
        """Answers as an orchestrator with two jobs of two states would."""

        def __init__(self, address):
            self.address = "here"

        def list_jobs(self):
            return [{"id": str(n), "name": f"j{n}", "state": state, "finished_at": None} for n, state in states]

        def timeline(self, wanted):
            stays = [{"job_id": one, "place": "cpu:0", "since": 1.0, "until": 2.0} for one in wanted]
            return {"now": 3.0, "stays": stays, "memory": {}}

    states = [(1, "RUNNING"), (2, "PAUSED")]
    monkeypatch.setattr(jobs, "Client", Cluster)
    chart = tmp_path / "run.svg"
    options = ["list", "--state", "running", "--json", "--gantt", str(chart)]
    done = CliRunner().invoke(app, options, catch_exceptions=False)
    assert [view["name"] for view in json.loads(done.stdout)] == ["j1"]
    assert "j1: " in chart.read_text()
    assert "j2" not in chart.read_text()


def test_a_picture_that_cannot_be_written_is_told_in_words(tmp_path):
    with pytest.raises(LorayError, match=r"--gantt: .*no/run.svg cannot be written: No such file or directory"):
        write_chart(tmp_path / "no" / "run.svg", "<svg/>")


def test_the_place_is_in_the_name_of_the_actor():
    assert place_of("odd@name@cpu:0#00ff") == "cpu:0"
