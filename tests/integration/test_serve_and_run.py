"""`loray serve` asked to end, and `loray run` that starts a cluster of its own; the last file to use what is served."""

import contextlib
import json
import os
import signal
import tempfile

import psutil
import pytest

from support.cluster import wait_until
from support.command import LORAY, Home, JobFiles
from support.tiny import token_rows

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600), pytest.mark.xdist_group("served")]

LONG = 1_000_000  # steps that no test lives to see


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_base):
    return JobFiles(tmp_path_factory.mktemp("ends"), tiny_base, token_rows(24))


@pytest.fixture(scope="module")
def stopped(served, files):
    """Exit code of a `loray serve` that was asked to end while its job `left` was running."""
    process = served.start(*LORAY, "submit", "--wait", files.write("left", max_steps=LONG), log="left")
    served.wait_for("left  RUNNING", process, log="left")
    wait_until((files.folder / "out" / "left" / "metrics.jsonl").exists)
    served.serving.send_signal(signal.SIGTERM)
    return served.serving.wait(120)


def test_sigterm_ends_serve_in_order_and_keeps_the_queue(served, stopped, files):
    assert stopped == 0
    assert "Traceback" not in (served.path / "serve").read_text()
    assert not (served.storage / "cluster.json").exists()
    assert list((files.folder / "out" / "left").glob("checkpoint-*"))
    assert served.run("list").returncode == 3


def test_run_starts_its_own_and_fails_with_a_job(served, stopped, files):
    """Goes on with what is in the queue of the cluster before, and ends when its own jobs are over."""
    rows = token_rows(3)
    broken = files.folder / "broken.jsonl"
    broken.write_text("\n".join([json.dumps(rows[0]), "{oops", json.dumps(rows[1])]) + "\n")
    good, bad = files.write("good", max_steps=15), files.write("bad", data="broken.jsonl")
    everywhere = tempfile.gettempdir()  # so that what others submit lies below the folder where it is started
    process = served.start(*LORAY, "run", good, bad, log="run", cwd=everywhere)
    served.wait_for("submitted 2 jobs", process, log="run")
    assert served.run("submit", files.write("guest", max_steps=40)).returncode == 0
    assert process.wait(200) == 1
    first, *lines, last = (served.path / "run").read_text().splitlines()
    assert first == "starting Ray on this machine ..."  # none of Ray's own noise
    assert any("1 job in the queue already" in line for line in lines)
    assert last == "1 job left in the queue; `loray serve` goes on with them"
    good_row, bad_row = [line for line in lines if line.startswith(("good ", "bad "))]
    assert good_row.split()[:2] == ["good", "SUCCEEDED"]
    assert bad_row.split()[:2] == ["bad", "FAILED"]
    assert "broken.jsonl:2:" in bad_row
    for name in ("good", "guest"):
        assert (files.folder / "out" / name / "adapter_model.safetensors").exists()
    assert not (served.storage / "cluster.json").exists()


def test_a_signal_to_the_whole_group_cancels_in_a_cluster_of_our_own(files):
    """As a terminal, `timeout` and process managers send it; Ray itself must live until the jobs have ended."""
    with contextlib.ExitStack() as stack:
        running = {}
        for number, code in (signal.SIGINT, 130), (signal.SIGTERM, 143):
            home = stack.enter_context(Home())
            job = files.write(f"stopped-{code}", max_steps=LONG)
            running[number, code] = home, home.start(*LORAY, "run", "--json", job, log="own")
        for (number, _), (home, process) in running.items():
            home.wait_for('"state": "RUNNING"', process, log="own")
            os.killpg(process.pid, number)
        for (_, code), (home, process) in running.items():
            assert process.wait(120) == code
            *lines, last = [
                line for line in (home.path / "own").read_text().splitlines() if not line.startswith("cancelling")
            ]
            events = [json.loads(line) for line in lines]
            assert {event["event"] for event in events} <= {"state", "progress"}
            assert [job["state"] for job in json.loads(last)["jobs"]] == ["CANCELLED"]
            assert not list((files.folder / "out" / f"stopped-{code}").glob("checkpoint-*"))


def test_serve_says_that_its_head_was_killed(files):
    """Either part of it; it takes a while to be noticed, so both at the same time."""
    with contextlib.ExitStack() as stack:
        serving = {}
        for part in ("gcs_server", "raylet"):
            home = stack.enter_context(Home())
            serving[part] = home, home.start(*LORAY, "serve", log="own", cwd=tempfile.gettempdir())
        for home, process in serving.values():
            home.wait_for("Ctrl-C stops it", process, log="own")
        for part, (_, process) in serving.items():
            (head,) = (child for child in psutil.Process(process.pid).children() if child.name() == part)
            head.kill()
        for home, process in serving.values():
            assert process.wait(120) == 3
            said = (home.path / "own").read_text().splitlines()[-1]
            assert said.startswith("error: Ray at ")
            assert "has ended: its head was stopped or killed. Jobs and their states are kept" in said
