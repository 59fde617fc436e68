"""A `loray serve` with a home of its own, and every window through which people look at it."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))  # homes and readers that the tests have as well

from orchestrator.client import Client
from support.command import LORAY, Home

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
WIDTH, HEIGHT = 80, 30
_PATIENCE_S = 600.0
_TELL = "import sys, json; open(sys.argv[1], 'a').write(json.dumps(json.load(sys.stdin)) + chr(10))"
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[()][A-Z0-9])")
_FRAME = "\x1b[H"  # with which a picture on the whole screen begins


class Served:
    """One `loray serve` with one actor of one thread.

    Attributes:
        folder: Of job files, data and outputs.
        home: Where it lives.
        trackers: Those that are installed.
        client: To ask it without a process of its own.
    """

    def __init__(self, home: Home, folder: Path, base: str) -> None:
        """Start it, and wait until it serves."""
        self.home, self.folder = home, folder
        self.trackers = [name for name, package in PACKAGES.items() if find_spec(package)]
        os.environ["LORAY_HOME"] = str(home.storage)  # where this process finds it
        tracking = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(home.path / "trackio")}
        home.env |= {**tracking, "COLUMNS": str(WIDTH)}
        os.environ |= tracking  # what reads them back, here
        self._told = home.path / "told.jsonl"
        cluster = {
            "actors": [{"cpu_threads": 1}],  # a core is left to those who watch
            "allowed_roots": [tempfile.gettempdir(), str(Path(base).parent)],
            "http": {"port": 0},
            "scheduler": {"policy": "fifo-memory"},  # all jobs at once, whatever the policy thinks of a tiny model
            "report_to": self.trackers,
            "on_end": [
                {"when": ["job", "grid", "queue"], "command": [sys.executable, "-I", "-c", _TELL, str(self._told)]}
            ],
        }
        path = home.path / "cluster.yaml"
        path.write_text(yaml.safe_dump(cluster))
        self.process = home.start(*LORAY, "serve", "--cluster", path, log="serve")
        home.wait_for("Ctrl-C stops it", self.process, log="serve")
        self._door = json.loads((home.storage / "door" / "door.json").read_text())
        self._dashboard = json.loads((home.storage / "cluster.json").read_text())["dashboard"]
        self.client = Client()

    def stop(self) -> int:
        """Ask it to end, and wait; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    # -- jobs ----------------------------------------------------------------------------------------------------

    def submit(self, *jobs: dict[str, Any]) -> None:
        """Submit some jobs at once, as one file.

        Raises:
            InvalidJobError: They are refused.
        """
        path = self.folder / "submitted.yaml"
        path.write_text(yaml.safe_dump({"jobs": list(jobs)}))
        self.client.submit(path)

    def jobs(self) -> dict[str, dict[str, Any]]:
        """All jobs by name."""
        return {view["name"]: view for view in self.client.list_jobs()}

    def told(self) -> list[dict[str, Any]]:
        """What the command of `on_end` was told."""
        return [json.loads(line) for line in self._told.read_text().splitlines()] if self._told.exists() else []

    # -- windows -------------------------------------------------------------------------------------------------

    def verb(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """A verb as in a terminal of 80 columns, into a pipe."""
        return self.home.run(*arguments, **options)

    def report_page(self) -> str:
        """The page of everything at the HTTP door, as a browser gets it."""
        name_and_token = base64.b64encode(f"me:{self._door['token']}".encode()).decode()
        return _get(f"{self._door['url']}/report", {"Authorization": f"Basic {name_and_token}"})

    def dashboard(self, path: str) -> Any:
        """What Ray's dashboard answers to its own pages."""
        token = (self.home.path / ".ray" / "auth_token").read_text().strip()
        return json.loads(_get(f"{self._dashboard}/{path}", {"Authorization": f"Bearer {token}"}))

    @property
    def discovery(self) -> Path:
        """Ray's file that says to Prometheus where to scrape."""
        return self.home.path / "ray" / "prom_metrics_service_discovery.json"

    def scrape(self) -> str:
        """What Prometheus would get.

        A target that does not answer is passed over, as there: two of Ray's ports are the same for every cluster of a
        machine, and may be those of one that has just ended.
        """
        answers = []
        for target in [target for group in json.loads(self.discovery.read_text()) for target in group["targets"]]:
            with contextlib.suppress(OSError):
                answers.append(_get(f"http://{target}/metrics", {}))
        return "\n".join(answers)

    @contextlib.contextmanager
    def top(self) -> Iterator[Callable[[], list[str]]]:
        """`loray top` on a terminal of 80 columns; what is yielded gives the lines of its latest picture."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
        env = {name: value for name, value in self.home.env.items() if name not in ("COLUMNS", "NO_COLOR")}
        env["TERM"] = "xterm-256color"
        process = subprocess.Popen(
            [*LORAY, "top"], env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        screen = _Screen(ours)
        try:
            yield screen.picture
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)
            screen.join(30)
            os.close(ours)


class _Screen(threading.Thread):
    """Reads what a program draws on a terminal, which would else be full and hold it up."""

    def __init__(self, terminal: int) -> None:
        super().__init__(daemon=True)
        self._terminal, self._seen = terminal, ""
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):  # nobody draws any more
            while data := os.read(self._terminal, 65536):
                self._seen = (self._seen + data.decode(errors="ignore"))[-100_000:]

    def picture(self) -> list[str]:
        """The lines of the latest whole picture."""
        whole = self._seen.split(_FRAME)[1:-1]
        return [_ESCAPES.sub("", line).rstrip() for line in whole[-1].splitlines()] if whole else []


def wait_until(condition: Callable[[], Any], what: str, every: float = 0.2) -> Any:
    """Wait until a condition holds; returns its value.

    Raises:
        RuntimeError: It does not within ten minutes.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {_PATIENCE_S:.0f} s: {what}")
        time.sleep(every)
    return value


@contextlib.contextmanager
def served(folder: Path, base: str) -> Iterator[Served]:
    """A `loray serve`, ended on leaving with all that it has started."""
    with Home() as home:
        yield Served(home, folder, base)


def widest(lines: Sequence[str]) -> int:
    """Columns of the widest line."""
    from rich.cells import cell_len

    return max(map(cell_len, lines), default=0)


def _get(url: str, headers: dict[str, str]) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
        text: str = answer.read().decode()
    return text
