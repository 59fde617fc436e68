"""A real Ray cluster of two nodes on this machine, with an orchestrator, whose every process can be reached."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest import mock

import psutil
import ray
from ray.cluster_utils import Cluster as RayCluster

from orchestrator.cluster.cluster_config import ClusterConfig
from orchestrator.control.controller_actor import start_or_attach_controller
from orchestrator.jobs.job import JobSpec

_DISK_BYTES = 48 * 2**20  # of the small disk that outputs go to
_CALL_SECONDS = 240.0
_START_TRIES = 4
_TOO_SLOW = "timed out during startup"
_SECOND = {"node": "second"}
_HEALTH = {  # a node that is gone is missed after seven seconds, not fifteen
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1500,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 4,
}
_MARK = "LORAY_CHAOS_RUN"  # in the environment of all that a run starts
_NODE = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False, "node_ip_address": "127.0.0.1"}


class Cluster:
    """Two nodes with a CPU actor each. A context: on leaving, everything that was started is ended.

    Attributes:
        folder: Where everything lies.
        outputs: Where the jobs write: a small disk of its own where this process may mount one.
        has_disk: Whether it is one.
        next_request: Body of the submission that comes next.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.outputs, self.has_disk = folder, folder / "out", False
        self.next_request = b""
        self._stack = contextlib.ExitStack()
        self._mark = secrets.token_hex(8)
        self._before = {child.pid for child in psutil.Process().children(recursive=True)}
        self._seen: dict[int, psutil.Process] = {}

    def __enter__(self) -> Cluster:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._disk())
            # where Ray notes the latest cluster: its own folder may not exist, or be another cluster's
            (self.folder / "ray").mkdir()
            variables = {_MARK: self._mark, "RAY_TMPDIR": str(self.folder)}
            stack.enter_context(mock.patch.dict(os.environ, variables))
            self._ray = RayCluster(shutdown_at_exit=False)
            stack.callback(self._ray.shutdown)
            self._add_node(_system_config=_HEALTH, temp_dir=str(self.folder / "r"))
            self.second = self._add_node(labels=_SECOND)
            ray.init(address=self._ray.address, log_to_driver=False, logging_level=logging.ERROR)
            stack.callback(ray.shutdown)
            self.config = ClusterConfig.model_validate(
                {
                    "storage": str(self.folder / "storage"),
                    "actors": [{"cpu_threads": 1}, {"cpu_threads": 1, "node_labels": "node=second"}],
                    "scheduler": {"tick_seconds": 0.25},
                    "allowed_roots": [str(self.folder)],
                    "http": {"port": 0},
                }
            )
            self._handle = start_or_attach_controller(self.config)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        self.outputs.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "loray", str(self.outputs)]
        mounted = shutil.which("mount") and not subprocess.run(["mount", *options], capture_output=True).returncode
        self.has_disk = bool(mounted)
        try:
            yield
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(self.outputs)], check=True)

    def _add_node(self, **settings: Any) -> Any:
        """Another node; on a very busy machine Ray may take longer than the half minute that it gives itself."""
        for left in reversed(range(_START_TRIES)):
            before = {process.pid for process in self._all()}
            try:
                return self._ray.add_node(**_NODE, **settings)
            except Exception as error:  # Ray has no class for it
                for process in self._all():
                    if process.pid not in before:  # of the node that did not come up
                        process.kill()
                if _TOO_SLOW not in str(error) or not left:
                    raise
        raise AssertionError

    # -- the orchestrator ----------------------------------------------------------------------------------------

    def call(self, method: str, *arguments: Any) -> Any:
        """Call the orchestrator; Ray repeats the call when it dies."""
        return ray.get(getattr(self._handle, method).remote(*arguments), timeout=_CALL_SECONDS)

    def submit(self, specs: Sequence[JobSpec], request_id: str) -> list[str]:
        """Submit jobs; returns their ids.

        Raises:
            RuntimeError: They are refused.
        """
        answer = self.call("submit", [spec.model_dump(mode="json") for spec in specs], request_id)
        if answer["problems"]:
            raise RuntimeError(f"refused: {answer['problems']}")
        return [job["id"] for job in answer["accepted"]]

    def stop(self) -> None:
        """Shut the orchestrator down in order."""
        ray.get(self._handle.shutdown.options(max_task_retries=0).remote(), timeout=_CALL_SECONDS)

    # -- processes -----------------------------------------------------------------------------------------------

    def processes(self, kind: str) -> list[psutil.Process]:
        """The living processes of a kind: `Controller`, `GpuActor`."""
        found = []
        for process in self._all():
            with contextlib.suppress(psutil.Error, IndexError):
                if process.cmdline()[0].startswith(f"ray::{kind}") and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _all(self) -> list[psutil.Process]:
        children = [p for p in psutil.Process().children(recursive=True) if p.pid not in self._before]
        self._seen |= {process.pid: process for process in children}
        return children

    def left(self) -> list[str]:
        """After the end: what still runs of all that this cluster has started, a moment being given to it.

        A process that has let go of its parent at once was never seen among the children; it bears the mark. One whose
        environment was cleared does not, and was seen.
        """
        deadline = time.monotonic() + 15
        while (alive := self._alive()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return alive

    def _alive(self) -> list[str]:
        found = self._seen | {process.pid: process for process in psutil.process_iter() if self._bears_mark(process)}
        return [words for process in found.values() if (words := _words_if_alive(process))]

    def _bears_mark(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return process.environ().get(_MARK) == self._mark
        return False

    def lose_second_node(self, *, with_workers: bool) -> Callable[[], None] | None:
        """Kill the second node; returns what brings another one in its place. None: it is gone already.

        Args:
            with_workers: As when the machine is gone; else its workers find out by themselves.
        """
        if "raylet" not in self.second.all_processes:
            return None
        raylet = psutil.Process(self.second.all_processes["raylet"][0].process.pid)
        workers = raylet.children(recursive=True)
        self._all()
        self._ray.remove_node(self.second, allow_graceful=False)
        for worker in workers if with_workers else ():
            with contextlib.suppress(psutil.Error):
                worker.kill()

        def bring_back() -> None:
            self.second = self._add_node(labels=_SECOND)

        return bring_back


def _words_if_alive(process: psutil.Process) -> str | None:
    with contextlib.suppress(psutil.Error):
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            return f"{process.pid} {' '.join(process.cmdline())[:80]}"
    return None


def send_signal(process: psutil.Process, number: signal.Signals) -> bool:
    """Send a signal; returns whether the process was there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)
        return True
    return False
