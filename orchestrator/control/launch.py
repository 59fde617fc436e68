"""Starting Ray and the orchestrator on this machine or on a cluster, and ending them."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil

from gpu_actor.contract.errors import ClusterUnavailableError, LorayError
from orchestrator.cluster.address import ClusterAddress, find_address, remove_cluster_file, write_cluster_file
from orchestrator.cluster.cluster_config import ClusterConfig
from orchestrator.cluster.connection import NAMESPACE, Connection, connection_of, controller, join, runs
from orchestrator.cluster.ray_internals import any_agent_port, loopback_only, sessions_of_their_own
from orchestrator.reporting import grafana

LOCK_FILE = "cluster.lock"
STARTING_SECONDS = 60.0
_START_TRIES = 3
# what Ray says after 30 s, which no setting changes; and where it waited for its dashboard in vain
_TOO_SLOW = ("timed out during startup", "dashboard.log", "dashboard.err")
SHUTDOWN_SECONDS = 120.0
# Loray puts no more into Ray's object store than parts of files for other nodes; Ray's own default would claim a
# third of the memory.
OBJECT_STORE_BYTES = 256 * 2**20

logger = logging.getLogger("loray")


class AlreadyRunningError(LorayError, RuntimeError):
    """Another process runs Loray from the same storage folder."""


def start_controller(config: ClusterConfig) -> bool:
    """Starts the orchestrator on the connected cluster unless it runs already; returns whether it was started."""
    from orchestrator.control.controller_actor import start_or_attach_controller

    if _is_there():
        return False
    start_or_attach_controller(config)
    return True


@contextlib.contextmanager
def start_local(config: ClusterConfig) -> Iterator[Connection]:
    """Starts Ray and the orchestrator on this machine, and ends both on leaving: unfinished jobs stay in the queue.

    Every port but the dashboard's and the metrics' asks for the token in `~/.ray/auth_token` (`RAY_AUTH_MODE=token`)
    unless the environment says otherwise; the dashboard listens on the loopback interface only.

    Raises:
        AlreadyRunningError: Another process runs Loray from the same storage folder.
        StoreError: The storage folder cannot be made or written.
    """
    storage = config.state_folder
    with _only_one(storage):
        with _grafana_dashboard(storage):
            connection = _start_ray()
        try:
            start_controller(config)
            write_cluster_file(storage, connection.address, connection.dashboard, os.getpid())
            yield connection
        finally:
            _stop(connection, storage)


@contextlib.contextmanager
def _grafana_dashboard(storage: Path) -> Iterator[None]:
    """Lets a Ray that is started meanwhile put its Grafana dashboards beside ours, where its Grafana settings point."""
    variable = "RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR"
    given = os.environ.get(variable)
    folder = Path(given or storage / "grafana")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "loray.json").write_text(grafana.text(), encoding="utf-8")
    except OSError as error:
        raise ClusterUnavailableError(
            f"the Grafana dashboard cannot be written to {folder}: {error.strerror}; make room there or mend its "
            f"permissions, or name another folder in {variable}"
        ) from None
    os.environ[variable] = str(folder)
    try:
        yield
    finally:
        if given is None:
            del os.environ[variable]


def _start_ray() -> Connection:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would start a worker per core that nobody uses: those of Loray have an environment of their own
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    os.environ.pop("RAY_ADDRESS", None)  # it would win over address="local" in the processes started from here
    import ray

    us = psutil.Process()
    for _ in range(_START_TRIES):
        before = us.children()
        try:
            with any_agent_port(), loopback_only(), sessions_of_their_own():
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
        except Exception as error:  # Ray has no class for it
            if not any(words in str(error) for words in _TOO_SLOW):
                raise
            logger.warning("Ray did not come up in its time, and is started once more: %s", error)
            for left in (child for child in us.children() if child not in before):  # of the Ray that did not come up
                left.kill()
    raise ClusterUnavailableError(
        f"Ray did not come up in the time that it gives itself, {_START_TRIES} times over; is the machine "
        "very busy? Its logs are in /tmp/ray/session_latest/logs"
    )


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
    while runs(connection.address) and time.monotonic() < deadline:
        done, _ = ray.wait([end], timeout=1.0)
        if done:
            ray.get(end)
            return


@contextlib.contextmanager
def _only_one(storage: Path) -> Iterator[None]:
    """Holds the storage folder, so that no two orchestrators write into one job table. The lock dies with us."""
    from orchestrator.store.storage_lock import open_file, try_lock

    with open_file(storage, LOCK_FILE) as file:
        if not try_lock(file):
            raise AlreadyRunningError(
                f"Loray runs already from {storage}; `loray list` shows its jobs, and a cluster file with another "
                "`storage` gives a second one its own place"
            )
        yield


def _is_there() -> bool:
    try:
        controller()
    except ClusterUnavailableError:
        return False
    return True


def _start_on(cluster: ClusterAddress, config: ClusterConfig) -> Connection:
    """Starts the orchestrator on a cluster, from a driver that the dashboard shows: its jobs are found there."""
    import ray

    ray.shutdown()
    connection = join(cluster)
    return replace(connection, orchestrator_started=start_controller(config))


@contextlib.contextmanager
def join_or_start(address: str | None, config: ClusterConfig) -> Iterator[Connection]:
    """Joins the cluster that `find_address` knows, and starts one on this machine when it knows none.

    Args:
        address: As for `find_address`.
        config: Settings of an orchestrator that has to be started.
    """
    storage = config.state_folder
    deadline = time.monotonic() + STARTING_SECONDS
    with contextlib.ExitStack() as stack:
        while True:
            cluster = find_address(address, storage)
            if cluster:
                connection = join(cluster, hidden=True)
                if not _is_there():
                    connection = _start_on(cluster, config)
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
