"""`ray job submit`: to a `ray start --head` that nobody prepared for Loray, with and without a token, and to ours."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

from support.command import ROOT, Home, JobFiles
from support.tiny import tiny_model, token_rows

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600), pytest.mark.xdist_group("served")]

RAY = Path(sys.executable).with_name("ray")


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def start_head(home, tries=3, **variables):
    """`ray start --head`, all ports chosen here or by Ray; returns its address and the URL of its dashboard.

    Ray gives a node 30 s to start, which cannot be set and which a busy machine may need longer for: then once more.
    """
    process = home.start(
        RAY,
        *("start", "--head", "--block", "--num-cpus=2", "--port=0", "--dashboard-port=0"),
        *(f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"),
        *(f"--temp-dir={home.path / f't{tries}'}", f"--object-store-memory={100 * 2**20}"),
        log="head",
        PATH=f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
        **variables,
    )
    try:
        said = home.wait_for("--block", process, log="head")
    except AssertionError as error:
        if tries > 1 and "timed out during startup" in str(error):
            return start_head(home, tries - 1, **variables)
        raise
    return re.search(r"--address='([^']+)'", said)[1], re.search(r"http://[0-9.:]+", said)[0]


def ray_job(folder, env, *arguments):
    """`ray job ...` to its end."""
    command = [RAY, "job", *arguments]
    return subprocess.run(
        command, env=env | {"RAY_AUTH_MODE": "token"}, cwd=folder, capture_output=True, text=True, timeout=180
    )


def ray_jobs(home, dashboard):
    """The rows of the dashboard's Jobs page."""
    token = (home.path / ".ray" / "auth_token").read_text().strip()
    request = urllib.request.Request(f"{dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def ray_job_submit(folder, env, *entrypoint, metadata=None):
    """Exit code and output of `ray job submit` as in the README.

    A head takes seconds after its first answer until it takes jobs. What `ray job submit` shows of a job's output may
    lack the end, so that the whole of it is asked for.
    """
    deadline = time.monotonic() + 60
    said_of_it = () if metadata is None else ("--metadata-json", json.dumps(metadata))
    while True:
        done = ray_job(folder, env, "submit", "--working-dir", ".", *said_of_it, "--", *entrypoint)
        if "No available agent to submit job" not in done.stderr or time.monotonic() > deadline:
            break
        time.sleep(1)
    said = done.stdout + done.stderr
    if found := re.search(r"raysubmit_\w+", said):
        said += ray_job(folder, env, "logs", found[0]).stdout
    return done.returncode, said


@pytest.fixture
def home():
    with Home() as home:
        yield home


def test_ray_job_submit_with_a_token(home, tmp_path):
    """The job's files lie in a folder that Ray deletes, so they are copied, and the adapter is put elsewhere."""
    tiny_model().save_pretrained(home.storage / "models" / "test" / "tiny")
    checkout = tmp_path / "checkout"
    for package in ("orchestrator", "gpu_actor"):
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "jobs").mkdir()
    files = JobFiles(checkout / "jobs", "test/tiny", token_rows(12))
    files.write("door", max_steps=10)
    subprocess.run([RAY, "get-auth-token", "--generate"], env=home.env, check=True, capture_output=True)
    _, dashboard = start_head(home, RAY_AUTH_MODE="token")
    env = home.env | {"RAY_API_SERVER_ADDRESS": dashboard}
    run = ("python", "-m", "orchestrator", "run", "jobs/door.json")
    code, said = ray_job_submit(checkout, env, *run, metadata={"project": "doors"})
    assert code == 0, said
    output = home.storage / "outputs" / "jobs" / "out" / "door"
    assert f"adapters go below {home.storage / 'outputs'}" in said
    assert str(output) in said
    assert (output / "adapter_model.safetensors").exists()
    (copy,) = (home.storage / "uploads").glob("*/data.jsonl")
    assert copy.read_bytes() == (checkout / "jobs" / "data.jsonl").read_bytes()
    assert not (checkout / "jobs" / "out").exists()
    # Whoever comes later finds the cluster without being told.
    (job,) = home.json("list")
    assert (job["name"], job["state"]) == ("door", "SUCCEEDED")
    assert job["spec"]["dataset"]["path"] == str(copy)
    # The Ray job says which LoRA jobs came with it, and the command that looked at them is none.
    (ray_job,) = ray_jobs(home, dashboard)
    assert ray_job["metadata"].items() >= {"owner": "operator", "lora_jobs": f"door ({job['id']})"}.items()
    assert ray_job["metadata"]["lora_logs"].startswith("loray logs")
    assert ray_job["metadata"]["project"] == "doors"


def test_a_head_without_a_token(home, tmp_path, tiny_base):
    """`loray serve --address` puts the orchestrator there and returns; the mode is found out."""
    files = JobFiles(tmp_path, tiny_base, token_rows(12))
    address, _ = start_head(home)
    missing = home.run("list", "--address", address)
    assert missing.returncode == 3
    assert f"loray serve --address {address}" in missing.stderr
    done = home.run("serve", "--address", address, "--json", cwd=tempfile.gettempdir())  # so that all of it is allowed
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["address"] == address
    assert json.loads((home.storage / "cluster.json").read_text())["pid"] is None
    done = home.run("submit", "--wait", files.write("plain", max_steps=5))
    assert done.returncode == 0, done.stderr
    assert "plain  SUCCEEDED" in done.stdout


def test_ray_job_submit_to_loray_serve_beside_another_ray(served, tmp_path):
    """Ray's one port for the agent that takes jobs was in use when it started."""
    dashboard = json.loads((served.storage / "cluster.json").read_text())["dashboard"]
    env = served.env | {"RAY_API_SERVER_ADDRESS": dashboard}
    code, said = ray_job_submit(tmp_path, env, sys.executable, "-c", "print(6 * 7)")
    assert code == 0, said
    assert "\n42\n" in said
