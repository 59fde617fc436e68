"""A real Trackio server, as people host one for themselves, and a process that reports several jobs to it."""

import contextlib
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time

from support.cluster import PATIENCE
from support.repository import ROOT

_SERVER = "import sys, trackio; trackio.show(open_browser=False, server_port=int(sys.argv[1]), block_thread=True)"
_REPORTING = """
import json, os, sys, time
from pathlib import Path
from orchestrator.jobs.states import JobState
from orchestrator.tracking.process import TrackerProcess
from orchestrator.tracking.tracker import TrackedJob

storage, *folders = sys.argv[1:]

def write(first, last):
    for folder in folders:
        with (Path(folder) / "metrics.jsonl").open("a") as file:
            for step in range(first, last + 1):
                file.write(json.dumps({"step": step, "loss": 1 / step, "tokens": 9, "time": 1.7e9 + step}) + "\\n")

write(1, 3)
process = TrackerProcess(storage)
process.follow([
    TrackedJob(f"0{number}", f"job-{number}", 1, folder, {}, ("trackio",), JobState.RUNNING)
    for number, folder in enumerate(folders)
])
while not all((Path(folder) / "tracked-trackio.json").exists() for folder in folders):
    time.sleep(0.05)
write(4, 9)
process.finish(30.0)
os._exit(0)  # as an actor of Ray ends
"""


@contextlib.contextmanager
def trackio_server(folder):
    """Yields its address, with what lets in who writes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(port)],
            env={**os.environ, "TRACKIO_DIR": str(folder / "server")},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(r"http://\S+write_token=\S+", log.read_text())):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield found.group()
    finally:
        server.kill()
        server.wait()


def report(folder, address, jobs):
    """Report jobs of nine steps to a server, the last six when all have begun, and end."""
    folders = [folder / f"out-{number}" for number in range(jobs)]
    for path in folders:
        path.mkdir()
    subprocess.run(
        [sys.executable, "-c", _REPORTING, str(folder / "storage"), *map(str, folders)],
        env={**os.environ, "TRACKIO_DIR": str(folder / "here"), "TRACKIO_SERVER_URL": address},
        cwd=ROOT,
        check=True,
        timeout=PATIENCE,
    )


def on_the_server(folder):
    """By run, the steps that the server has of it."""
    found = {}
    with contextlib.closing(sqlite3.connect(folder / "server" / "loray.db")) as database:
        for run, step in database.execute("SELECT run_name, step FROM metrics ORDER BY run_name, step"):
            found.setdefault(run, []).append(step)
    return found
