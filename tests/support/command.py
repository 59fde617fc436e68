"""Drives the real command line in processes of its own, with a home of its own."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import pytest

from orchestrator.cli import app
from support.cluster import PATIENCE
from support.repository import ROOT
from support.tiny import write_rows

LORAY = [sys.executable, "-m", "orchestrator"]
_OURS = ("RAY_", "LORAY_")


class Home:
    """A short HOME and LORAY_HOME under /tmp; on leaving, every process started here is ended with its children."""

    def __init__(self, **variables):
        self.path = Path(tempfile.mkdtemp(prefix="lo", dir="/tmp"))
        self.storage = self.path / "s"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        self.env = {**clean, "HOME": str(self.path), "LORAY_HOME": str(self.storage), "OMP_NUM_THREADS": "1"}
        self.env |= {"RAY_TMPDIR": str(self.path), "COLUMNS": "200"}  # wide enough for the paths of tests
        self.env |= {"RAY_USAGE_STATS_ENABLED": "0", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", **variables}
        self._started = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self._started:
            end(process)
        shutil.rmtree(self.path, ignore_errors=True)  # a killed process may still write its last line

    def run(self, *arguments, timeout=PATIENCE, cwd=ROOT, **variables):
        """Runs `loray ...` to its end; returns the finished process with its output."""
        return subprocess.run(
            [*LORAY, *map(str, arguments)],
            env=self.env | variables,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def call(self, *arguments):
        """Runs `loray ...` in this process, for what ends before a cluster is needed; returns what `run` returns."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ, self.env, clear=True):
            patch.chdir(ROOT)
            patch.setattr(sys, "argv", ["loray", *map(str, arguments)])
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
                app.main()
        return subprocess.CompletedProcess(arguments, ended.value.code or 0, out.getvalue(), err.getvalue())

    def python(self, script, timeout=PATIENCE, cwd=ROOT, **variables):
        """Runs a Python script that imports Loray; returns what it printed."""
        path = self.path / "script.py"
        path.write_text(script)
        variables["PYTHONPATH"] = str(ROOT)
        done = subprocess.run(
            [sys.executable, path], env=self.env | variables, cwd=cwd, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

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
                preexec_fn=listen_to_ctrl_c,
            )
        self._started.append(process)
        return process

    def wait_for(self, words, process, log="log", timeout=PATIENCE):
        """Waits until the output of a started process holds some words; returns the output."""
        deadline = time.monotonic() + timeout
        while True:
            text = (self.path / log).read_text()
            if words in text:
                return text
            assert process.poll() is None, f"ended with {process.returncode}:\n{text}"
            assert time.monotonic() < deadline, f"no {words!r} within {timeout} s in:\n{text}"
            time.sleep(0.1)


def listen_to_ctrl_c():
    """Undo what a shell does to background commands: tests that run in one would start processes deaf to SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end(process):
    """Kills a process and whatever it started; the orderly ways out are for tests to show."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


class JobFiles:
    """Writes job files on one tiny base model and one data set, in a folder of their own."""

    def __init__(self, folder, base, rows):
        self.folder, self.base = folder, base
        write_rows(folder / "data.jsonl", rows)

    def spec(self, name, **changes):
        """The fields of a job; `max_steps` and the like go into `training`."""
        training = {"max_steps": 20, "learning_rate": 1e-3, "per_device_train_batch_size": 4, "save_steps": 10}
        return {
            "name": name,
            "base_model": self.base,
            "dataset": {"path": changes.pop("data", "data.jsonl"), "format": "tokens"},
            "output_dir": f"out/{name}",
            "training": training | changes,
        }

    def write(self, name, **changes):
        """Writes a job file and returns its path."""
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(self.spec(name, **changes)))
        return path
