"""The command line with real training on a real cluster: the verbs, and `run` that joins."""

import contextlib
import ipaddress
import json
import os
import pty
import signal
import sys

import psutil
import pytest

from support.command import LORAY, ROOT, JobFiles, listen_to_ctrl_c
from support.priorities import lowered, priorities
from support.tiny import token_rows, write_rows

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600), pytest.mark.xdist_group("served")]

LONG = 1_000_000  # steps that no test lives to see


@pytest.fixture(scope="module")
def home(served):
    return served


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_base):
    return JobFiles(tmp_path_factory.mktemp("cli"), tiny_base, token_rows(24))


@pytest.fixture(scope="module")
def trained(home, files):
    """`loray submit --wait` of a job named `first`, at its end."""
    return home.run("submit", "--wait", files.write("first", max_steps=12, logging_steps=1))


@pytest.fixture(scope="module")
def abandoned(home, files):
    """Exit code and output of a `loray run` that joined and was left with Ctrl-C; its job `joined` goes on."""
    process = home.start(*LORAY, "run", files.write("joined", max_steps=LONG), log="joined")
    home.wait_for("joined  RUNNING", process, log="joined")
    os.killpg(process.pid, signal.SIGINT)
    yield process.wait(120), (home.path / "joined").read_text()
    home.run("cancel", "joined")


def state(home, ref):
    return home.json("show", ref)["state"]


def wait_until(home, ref, condition):
    """Waits, in one process, until a condition on a job's `view` holds; returns the view."""
    script = f"""
import json, time
from orchestrator import Client
client, end = Client(), time.monotonic() + 200
while True:
    view = client.get_job({ref!r})
    if {condition}:
        break
    assert time.monotonic() < end, view
    time.sleep(0.1)
print(json.dumps(view))
"""
    return json.loads(home.python(script))


def test_serve_says_how_to_go_on(home):
    said = (home.path / "serve").read_text()
    known = json.loads((home.storage / "cluster.json").read_text())
    assert known["pid"] == home.serving.pid
    assert known["address"] in said
    assert known["dashboard"] in said
    assert "loray submit JOB.yaml" in said
    assert (home.path / ".ray" / "auth_token").exists()  # the token mode is on unless the environment says otherwise


def test_a_second_one_is_refused(home):
    done = home.run("serve")
    assert done.returncode == 2
    assert "runs already" in done.stderr


def test_submit_waits_and_exits_by_the_outcome(trained, files):
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr == ""
    assert "first  SUCCEEDED  step 12/12" in trained.stdout
    assert str(files.folder / "out" / "first") in trained.stdout
    assert (files.folder / "out" / "first" / "adapter_model.safetensors").exists()


def test_wait_tells_by_its_exit_code_how_jobs_ended(home, trained, files):
    assert home.run("wait", "first").returncode == 0
    write_rows(files.folder / "broken.jsonl", [*token_rows(200), {"input_ids": "none"}])
    home.run("submit", files.write("endless", max_steps=LONG), files.write("broken", data="broken.jsonl"))
    late = home.run("wait", "endless", "first", "--timeout", "0.2")
    assert late.returncode == 124
    assert "first" in late.stdout
    assert "1 job not over after 0.2s" in late.stderr
    unknown = home.run("wait", "first", "nobody")
    assert unknown.returncode == 2
    assert "nobody" in unknown.stderr
    home.run("cancel", "endless")
    lines = home.run("wait", "endless", "first", "--json")
    assert lines.returncode == 4
    assert {job["name"]: job["state"] for job in json.loads(lines.stdout.splitlines()[-1])["jobs"]} == {
        "endless": "CANCELLED",
        "first": "SUCCEEDED",
    }
    assert home.run("wait", "endless", "broken").returncode == 1


def test_logs_hold_events_and_metrics_in_order(home, trained):
    done = home.run("logs", "first")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum("  step " in line and "  loss " in line for line in lines) == 12
    assert lines == sorted(lines, key=lambda line: line[:19])
    entries = [json.loads(line) for line in home.run("logs", "first", "--json").stdout.splitlines()]
    assert [entry["step"] for entry in entries if "loss" in entry] == list(range(1, 13))
    assert any("message" in entry for entry in entries)


def test_a_job_is_steered_by_name_and_by_id(home, files):
    (job,) = home.json("submit", files.write("steered", max_steps=LONG))
    assert job["name"] == "steered"
    wait_until(home, job["id"], "view['step'] > 0")
    assert home.run("pause", "steered").returncode == 0
    paused = wait_until(home, "steered", "view['state'] == 'PAUSED'")
    assert home.json("resume", job["id"])[0]["state"] == "QUEUED"
    wait_until(home, job["id"], f"view['step'] > {paused['step']}")
    assert [view["name"] for view in home.json("list", "--state", "running")] == ["steered"]
    follower = home.start(*LORAY, "logs", "-f", "steered", log="follow")
    home.wait_for("loss", follower, log="follow")
    assert "cancel requested" in home.run("cancel", job["id"]).stdout
    assert follower.wait(120) == 0
    assert "cancel" in (home.path / "follow").read_text()
    assert state(home, "steered") == "CANCELLED"
    assert home.json("retry", "steered")[0]["state"] == "QUEUED"
    wait_until(home, "steered", "view['step'] > 0")
    home.run("cancel", "steered")


def test_refusals_name_the_job_and_what_is_wrong(home, trained, files):
    for arguments, words in (
        (["show", "nobody"], "nobody"),
        (["pause", "first"], "SUCCEEDED"),
        (["submit", files.write("first")], "output_dir"),
        (
            ["submit", files.write("odd", max_steps=3), files.write("odd2", warmup_ratio=2)],
            "odd2.json: training.warmup_ratio",
        ),
    ):
        done = home.run(*arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert "odd" not in [view["name"] for view in home.json("list", "--all")]


def test_several_at_once_and_one_that_is_unknown(home, files):
    assert home.run("submit", *(files.write(name, max_steps=LONG) for name in ("one", "two"))).returncode == 0
    done = home.run("cancel", "one", "nobody", "two")
    assert done.returncode == 2
    assert "one  cancel requested" in done.stdout
    assert "two  cancel requested" in done.stdout
    assert "nobody" in done.stderr
    for name in ("one", "two"):
        wait_until(home, name, "view['state'] == 'CANCELLED'")


def test_top_shows_actors_and_counts(home, trained):
    done = home.run("top")
    assert done.returncode == 0, done.stderr
    assert "SUCCEEDED" in done.stdout
    assert "ready" in done.stdout
    told = home.json("top")
    assert told["actors"][0]["memory_used"] > 0
    assert all(job["state"] not in ("SUCCEEDED", "FAILED", "CANCELLED") for job in told["live_jobs"])
    last = told["events"][-1]
    assert f"{last['name']}: {last['message'][:20]}" in done.stdout


def test_show_tells_the_story_with_a_curve(home, trained):
    done = home.run("show", "first", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    story = [line.strip().split("  ")[-1].strip() for line in lines if line[:3].rstrip("-").isdecimal()]
    assert story[0] == "accepted"
    assert "succeeded after 12 steps" in done.stdout
    assert lines[-1].split() == ["1", "step", "12"]
    assert max(map(len, lines)) <= 80
    told = home.json("show", "first")
    assert [step for step, _ in told["curves"]["losses"]] == list(range(1, 13))
    assert told["forecast"] is None


def test_a_picture_shows_where_the_jobs_were_and_the_memory(home, trained):
    chart = home.path / "run.svg"
    done = home.run("list", "--gantt", chart)
    assert done.returncode == 0, done.stderr
    text = chart.read_text()
    assert "<title>first: 0s to " in text
    assert "<title>cpu:0</title>" in text
    assert "memory in use; the dashed line is" in text


def test_a_plan_on_the_running_cluster_names_the_policy_that_it_was_asked_for(home, trained, files):
    path = files.write("planned", max_steps=30)
    (row,) = home.json("plan", path, "--policy", "fifo")
    assert (row["job"], row["reason"], row["remark"]) == ("planned", None, None)
    assert 0 <= row["start_s"] < row["finish_s"]
    assert "@cpu:0" in row["actor"]
    assert "planned" not in [view["name"] for view in home.json("list", "--all")]


def test_run_joins_and_ctrl_c_leaves_the_jobs_alone(home, abandoned):
    code, said = abandoned
    assert code == 130
    assert "joined Ray at" in said
    assert "go on in the cluster" in said
    assert "Traceback" not in said
    assert state(home, "joined") == "RUNNING"


def test_the_same_run_again_goes_on_with_its_jobs(home, abandoned, files):
    """A changed one of the same name is refused."""
    before = home.json("show", "joined")
    process = home.start(*LORAY, "run", files.folder / "joined.json", log="again")
    home.wait_for("goes on, as left by an earlier run: joined", process, log="again")
    home.wait_for("joined  RUNNING", process, log="again")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(120) == 130
    after = home.json("show", "joined")
    assert (after["id"], after["attempt"]) == (before["id"], before["attempt"])
    assert len([view for view in home.json("list") if view["name"] == "joined"]) == 1
    other = files.folder / "other.json"
    other.write_text(json.dumps(files.spec("joined", max_steps=LONG - 1) | {"output_dir": "out/other"}))
    refused = home.run("run", other)
    assert refused.returncode == 2
    assert "name of a live job" in refused.stderr


def test_a_terminal_gets_a_live_picture(home, files):
    path = files.write("live", max_steps=20)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(sys.executable, [*LORAY, "run", str(path)], {**home.env, "TERM": "xterm", "COLUMNS": "110"})
    shown = b""
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        try:
            while piece := screen.read(65536):
                shown += piece
        except OSError:  # the end of a pseudo terminal
            pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    text = shown.decode()
    assert "\x1b[1A\x1b[2K" in text  # drawn again in place
    assert "tokens/s in all" in text
    assert "memory" in text
    assert "SUCCEEDED" in text.rpartition("\x1b[2K")[2]


def test_top_draws_until_ctrl_c_and_comes_after_training(home):
    pid, terminal = pty.fork()
    if pid == 0:
        listen_to_ctrl_c()
        os.chdir(ROOT)
        os.execve(sys.executable, [*LORAY, "top"], {**home.env, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"})
    with os.fdopen(terminal, "r+b", buffering=0) as screen:
        shown = b""
        while shown.count(b"Loray at ") < 3:  # drawn again and again
            shown += screen.read(65536)
        assert priorities(pid) == {(lowered(psutil.Process().nice()), os.SCHED_BATCH)}
        screen.write(b"\x03")
        with contextlib.suppress(OSError):  # the end of a pseudo terminal
            while screen.read(65536):
                pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130


def test_no_other_machine_reaches_what_serve_has_started(served):
    """Ray listens everywhere by itself, for its own cluster of one machine too."""
    found = psutil.process_iter(["cmdline"])
    family = {process for process in found if str(served.path) in " ".join(process.info["cmdline"] or [])}
    family.add(psutil.Process(served.serving.pid))
    family |= {child for process in family for child in process.children(recursive=True)}
    ports = {
        (process.name(), *connection.laddr)
        for process in family
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert len({name for name, *_ in ports}) >= 5  # the orchestrator, the head, the raylet, its agents, the dashboard
    assert [place for place in ports if not ipaddress.ip_address(place[1].removeprefix("::ffff:")).is_loopback] == []
