"""Starting Ray and the orchestrator on this machine or on a cluster, and ending them."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import inspect
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_actor.contract.errors import ClusterUnavailableError, LorayError
from orchestrator.cluster.address import answers, find_address, remove_cluster_file, write_cluster_file
from orchestrator.cluster.cluster_config import ClusterConfig
from orchestrator.cluster.connection import NAMESPACE, Connection, connection_of, controller, join

LOCK_FILE = "cluster.lock"
STARTING_SECONDS = 60.0
SHUTDOWN_SECONDS = 120.0
# Loray puts nothing into Ray's object store; Ray's own default would claim a third of the memory.
OBJECT_STORE_BYTES = 256 * 2**20


class AlreadyRunningError(LorayError, RuntimeError):
    """Another process runs Loray from the same storage folder."""


def start_controller(config: ClusterConfig) -> bool:
    """Starts the orchestrator on the connected cluster unless it runs already; returns whether it was started."""
    from orchestrator.control.controller_actor import start_or_attach_controller

    try:
        controller()
    except ClusterUnavailableError:
        start_or_attach_controller(config)
        return True
    return False


@contextlib.contextmanager
def start_local(config: ClusterConfig) -> Iterator[Connection]:
    """Starts Ray and the orchestrator on this machine, and ends both on leaving: unfinished jobs stay in the queue.

    Every port but the dashboard's and the metrics' asks for the token in `~/.ray/auth_token` (`RAY_AUTH_MODE=token`)
    unless the environment says otherwise; the dashboard listens on the loopback interface only.

    Raises:
        AlreadyRunningError: Another process runs Loray from the same storage folder.
        StoreError: The storage folder cannot be made or written.
    """
    storage = Path(config.storage)
    with _only_one(storage):
        connection = _start_ray()
        try:
            start_controller(config)
            write_cluster_file(storage, connection.address, connection.dashboard, os.getpid())
            yield connection
        finally:
            _stop(connection, storage)


def _start_ray() -> Connection:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.pop("RAY_ADDRESS", None)  # it would win over address="local" in the processes started from here
    import ray

    with any_agent_port():
        context = ray.init(
            address="local",
            namespace=NAMESPACE,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
        )
    return replace(connection_of(context), started=True, orchestrator_started=True)


@contextlib.contextmanager
def any_agent_port() -> Iterator[None]:
    """Lets the agent of a Ray that is started meanwhile listen at any free port.

    `ray job submit` comes in through it. Ray takes port 52365 and `ray.init` has no option for another, so that beside
    a second Ray on the machine the agent would be deaf, and every `ray job submit` refused.
    """
    params: Any = importlib.import_module("ray._private.parameter").RayParams
    option, original = "dashboard_agent_listen_port", params.__init__
    if option in inspect.signature(original).parameters:
        # None: Ray 2.50 chooses a port where none is given, and takes a 0 in some places for one that was
        params.__init__ = functools.partialmethod(original, **{option: None})
    try:
        yield
    finally:
        params.__init__ = original


def _stop(connection: Connection, storage: Path) -> None:
    import ray

    remove_cluster_file(storage)  # first, so that nobody joins what is about to end
    try:
        with contextlib.suppress(ray.exceptions.RayError, ClusterUnavailableError):
            _shut_down_controller(connection)
    finally:
        ray.shutdown()


def _shut_down_controller(connection: Connection) -> None:
    """Waits until the orchestrator has stopped its actors, as long as there is a cluster to wait for.

    A signal to the whole process group, or the end of a container, takes Ray's own processes along with us.
    """
    import ray

    end = controller().shutdown.options(max_task_retries=0).remote()
    deadline = time.monotonic() + SHUTDOWN_SECONDS
    while answers(connection.address) and time.monotonic() < deadline:
        done, _ = ray.wait([end], timeout=1.0)
        if done:
            ray.get(end)
            return


@contextlib.contextmanager
def _only_one(storage: Path) -> Iterator[None]:
    """Holds the storage folder, so that no two orchestrators write into one job table. The lock dies with us."""
    from orchestrator.store.storage_lock import open_file

    with open_file(storage, LOCK_FILE) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AlreadyRunningError(
                f"Loray runs already from {storage}; `loray list` shows its jobs, and a cluster file with another "
                "`storage` gives a second one its own place"
            ) from None
        yield


@contextlib.contextmanager
def join_or_start(address: str | None, config: ClusterConfig) -> Iterator[Connection]:
    """Joins the cluster that `find_address` knows, and starts one on this machine when it knows none.

    Args:
        address: As for `find_address`.
        config: Settings of an orchestrator that has to be started.
    """
    storage = Path(config.storage)
    deadline = time.monotonic() + STARTING_SECONDS
    with contextlib.ExitStack() as stack:
        while True:
            found = find_address(address, storage)
            if found:
                connection = join(found)
                if start_controller(config):
                    connection = replace(connection, orchestrator_started=True)
                    write_cluster_file(storage, connection.address, connection.dashboard, None)
                break
            try:
                connection = stack.enter_context(start_local(config))
                break
            except AlreadyRunningError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)  # it is still starting, or just ending
        yield connection
