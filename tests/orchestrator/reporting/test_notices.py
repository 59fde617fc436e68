"""on_end: real commands and a real webhook are told of real rows of the store; what goes wrong there is an event."""

import asyncio
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from orchestrator.cluster.cluster_config import ClusterConfig, ClusterFileError, OnEndConfig
from orchestrator.cluster.cluster_file import load_cluster_config
from orchestrator.jobs.states import JobState
from orchestrator.reporting.notices import Notices
from support.house import House

KEEP = "import sys, json; open(sys.argv[1], 'a').write(json.dumps(json.load(sys.stdin)) + chr(10))"


def python(code, *arguments):
    return [sys.executable, "-I", "-S", "-c", code, *map(str, arguments)]


def tell(house, hooks, *batches):
    """Ends jobs, batch by batch; returns when all was told."""

    async def all_of_it():
        notices = Notices(house.store, ClusterConfig(storage=str(house.path), on_end=hooks))
        for batch in batches:
            for job_id, state, changes in batch:
                notices.over(house.store.move(job_id, state, "over", **changes))
            await asyncio.sleep(0.3)
        await notices.stop()

    asyncio.run(all_of_it())


def submit_grid(house, *names):
    specs = [house.store.get(house.submit(f"model-of-{name}")).spec for name in names]
    specs = [
        spec.model_copy(update={"name": name, "output_dir": str(house.path / name)})
        for spec, name in zip(specs, names, strict=True)
    ]
    for job in house.store.jobs():
        house.store.move(job.id, JobState.CANCELLED, "was a model")
    return [job.id for job in house.store.add(specs, "one request")]


def test_a_command_hears_of_jobs_their_grid_and_the_empty_queue(tmp_path):
    house = House(tmp_path)
    a, b = submit_grid(house, "a", "b")
    alone = house.submit("alone")
    house.store.set_progress({a: {"step": 7, "total_steps": 7, "loss": float("nan")}})
    hooks = [OnEndConfig(when=["job", "grid", "queue"], command=python(KEEP, tmp_path / "told"))]
    tell(
        house,
        hooks,
        [(a, JobState.FAILED, {"reason": "loss is nan"})],
        [(b, JobState.CANCELLED, {})],
        [(alone, JobState.CANCELLED, {})],
    )
    told = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "told").read_text().splitlines()]
    told.sort(key=lambda facts: facts["time"])
    assert [facts["event"] for facts in told] == ["job", "job", "grid", "job", "queue"]
    assert (told[0]["job"]["name"], told[0]["job"]["state"], told[0]["job"]["step"]) == ("a", "FAILED", 7)
    assert told[0]["job"]["loss"] is None
    assert told[0]["text"] == "a  FAILED  step 7/7 (100%)  loss nan  loss is nan"
    assert told[2]["text"] == "2 jobs that were submitted together are over: 1 FAILED, 1 CANCELLED"
    assert [job["name"] for job in told[4]["jobs"]] == ["a", "b", "alone"]
    assert told[4]["text"] == "the queue is empty: 1 FAILED, 2 CANCELLED"
    assert "spec" not in told[4]["jobs"][0]


def test_two_that_end_together_are_one_end_of_the_queue(tmp_path):
    house = House(tmp_path)
    jobs = submit_grid(house, "a", "b")
    hooks = [OnEndConfig(when=["grid", "queue"], command=python(KEEP, tmp_path / "told"))]
    tell(house, hooks, [(job, JobState.CANCELLED, {}) for job in jobs])
    assert sorted(json.loads(line)["event"] for line in (tmp_path / "told").read_text().splitlines()) == [
        "grid",
        "queue",
    ]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit('no [red]disk[/red]\\x1b[31m')", "exit code 1: no [red]disk[/red]"),
        ("import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])", "ended"),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9"),
    ],
)
def test_a_command_that_fails_or_hangs_is_an_event_and_no_more(tmp_path, code, said):
    house = House(tmp_path)
    job = house.submit("a")
    hook = OnEndConfig(command=python(code), timeout_seconds=1.0 if said == "ended" else 60.0)
    tell(house, [hook], [(job, JobState.CANCELLED, {})])
    message = house.store.events(job)[-1]["message"]
    assert message.startswith(f"on_end: {sys.executable} was not told: ")
    assert said in message
    assert "\x1b" not in message
    assert house.store.get(job).state is JobState.CANCELLED


class Hook(BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if "slow" in self.path:
            time.sleep(5)
        self.send_response(302 if "moved" in self.path else 204)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_webhook_is_told_and_its_url_is_not(tmp_path):
    house = House(tmp_path)
    job = house.submit("a")
    server = HTTPServer(("127.0.0.1", 0), Hook)
    server.told = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    hooks = [OnEndConfig(url=f"{url}/{path}-secret", timeout_seconds=1.0) for path in ("ok", "moved", "slow")]
    hooks.append(OnEndConfig(url="http://127.0.0.1:1/gone-secret"))
    tell(house, hooks, [(job, JobState.CANCELLED, {})])
    server.shutdown()
    assert [facts["job"]["name"] for facts in server.told] == ["a", "a", "a"]
    events = [event["message"] for event in house.store.events(job) if "on_end" in event["message"]]
    assert len(events) == 3
    for words in ("answered 302", "no answer within 1 s", "127.0.0.1:1"):
        assert any(words in event for event in events)
    assert "secret" not in " ".join(events)


def test_a_cluster_file_names_programs_relative_to_itself_and_ones_that_are_there(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("on_end: [{command: [./tell, 'a b']}, {command: [sh, -c, 'true']}, {url: 'https://example.org/x'}]")
    config = load_cluster_config(path)
    assert [hook.command for hook in config.on_end] == [[str(tmp_path / "tell"), "a b"], ["sh", "-c", "true"], None]
    with pytest.raises(ClusterFileError, match=r"on_end\[0\].command: .*tell is no program that can be started"):
        Notices(None, config)
    for wrong, words in (
        ("[{}]", "needs one of them"),
        ("[{command: [a], url: 'http://x'}]", "either command or url"),
        ("[{command: a}]", "command"),
        ("[{url: 'file:///etc/passwd'}]", "url"),
        ("[{command: [a], when: [always]}]", "job, grid"),
    ):
        path.write_text(f"on_end: {wrong}")
        with pytest.raises(ClusterFileError, match=words):
            load_cluster_config(path)
