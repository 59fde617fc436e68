"""Drives the real command line in processes of its own, with a home of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
LORAY = [sys.executable, "-m", "orchestrator"]
_OURS = ("RAY_", "LORAY_")


class Home:
    """A short HOME and LORAY_HOME under /tmp; on leaving, every process started here is ended with its children."""

    def __init__(self, **variables):
        self._folder = tempfile.TemporaryDirectory(prefix="lo", dir="/tmp")
        self.path = Path(self._folder.name)
        self.storage = self.path / "s"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        self.env = {**clean, "HOME": str(self.path), "LORAY_HOME": str(self.storage), "OMP_NUM_THREADS": "1"}
        self.env |= {"RAY_USAGE_STATS_ENABLED": "0", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", **variables}
        self._started = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self._started:
            end(process)
        self._folder.cleanup()

    def run(self, *arguments, timeout=120, cwd=ROOT, **variables):
        """Runs `loray ...` to its end; returns the finished process with its output."""
        return subprocess.run(
            [*LORAY, *map(str, arguments)],
            env=self.env | variables,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def json(self, *arguments, **options):
        """The document that `loray ... --json` prints."""
        done = self.run(*arguments, "--json", **options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def start(self, *command, log="log", cwd=ROOT, **variables):
        """Starts any command in a process group of its own; its output goes to the file `log` of this home."""
        with (self.path / log).open("w") as out:
            process = subprocess.Popen(
                list(map(str, command)),
                env=self.env | variables,
                cwd=cwd,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def wait_for(self, words, process, log="log", timeout=90):
        """Waits until the output of a started process holds some words; returns the output."""
        deadline = time.monotonic() + timeout
        while True:
            text = (self.path / log).read_text()
            if words in text:
                return text
            assert process.poll() is None, f"ended with {process.returncode}:\n{text}"
            assert time.monotonic() < deadline, f"no {words!r} within {timeout} s in:\n{text}"
            time.sleep(0.1)


def end(process):
    """Ends a process and whatever it started: asks first, then kills the group."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def until(condition, timeout=60, every=0.2):
    """Waits until a condition holds, and returns what it gave."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s"
        time.sleep(every)
    return value
