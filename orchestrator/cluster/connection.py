"""Joining the Ray cluster that Loray runs on, or starting one on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import inspect
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_actor.contract.errors import ClusterUnavailableError, LorayError
from orchestrator.cluster.address import (
    PROBE_SECONDS,
    Found,
    answers,
    checked,
    find_address,
    host_and_port,
    remove_cluster_file,
    write_cluster_file,
)

if TYPE_CHECKING:
    from orchestrator.cluster.cluster_config import ClusterConfig

NAMESPACE = "loray"
CONTROLLER = "loray-controller"
LOCK_FILE = "cluster.lock"
STARTING_SECONDS = 60.0
SHUTDOWN_SECONDS = 120.0
# Loray puts nothing into Ray's object store; Ray's own default would claim a third of the memory.
OBJECT_STORE_BYTES = 256 * 2**20

HOW_TO_START = (
    "Start one with `loray serve`, or let `loray run JOB.yaml` start its own. For one that runs elsewhere, give "
    "`--address HOST:PORT` or set RAY_ADDRESS."
)


@dataclass(frozen=True)
class Connection:
    """This process's link to a Ray cluster.

    Attributes:
        address: Host and port of the cluster.
        dashboard: URL of the Ray dashboard, or None when it has none.
        started: Whether this process started the cluster, and so ends it.
        orchestrator_started: Whether this process started the orchestrator on it, with its own settings.
    """

    address: str
    dashboard: str | None
    started: bool = False
    orchestrator_started: bool = False


class AlreadyRunningError(LorayError, RuntimeError):
    """Another process runs Loray from the same storage folder."""


def connect(address: str | None = None) -> Connection:
    """Joins a running Ray cluster, or uses the one that this process is connected to already.

    Args:
        address: `host:port` or `auto`; None looks at `RAY_ADDRESS` and then at the storage folder.

    Raises:
        ClusterUnavailableError: None was found, or it does not let this process in.
    """
    ray: Any = sys.modules.get("ray")
    if ray and ray.is_initialized():
        current: str = ray.get_runtime_context().gcs_address
        if address not in (None, "auto"):
            _check_same(checked(address, "the given address"), current)
        return Connection(current, None)
    found = find_address(address)
    if found is None:
        raise ClusterUnavailableError(f"no Loray cluster is running here. {HOW_TO_START}")
    return _join(found)


def _check_same(address: str, current: str) -> None:
    """Refuses a second cluster in one process; two names of one host with the same port pass."""
    given, joined = host_and_port(address), host_and_port(current)
    if given and joined and given[1] == joined[1]:
        return
    raise ClusterUnavailableError(
        f"this process is connected to Ray at {current} already and cannot join {address} as well; "
        "call ray.shutdown() first, or leave the address out"
    )


def _join(found: Found) -> Connection:
    import ray

    where = f"{found.address} (from {found.source})"
    try:
        address = _resolved(found.address)
        _use_auth_mode(address, where)
        context = ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if isinstance(error, LorayError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ClusterUnavailableError(f"cannot join the Ray cluster at {where}: {reason}") from None
    return _connection(context)


def _resolved(address: str) -> str:
    if address != "auto":
        return address
    services: Any = importlib.import_module("ray._private.services")
    return str(services.canonicalize_bootstrap_address(address))


def _connection(context: Any) -> Connection:
    url = context.dashboard_url
    return Connection(context.address_info["gcs_address"], f"http://{url}" if url else None)


def _use_auth_mode(address: str, where: str) -> None:
    """Finds out whether the cluster wants a token, and sets `RAY_AUTH_MODE` to that unless the environment decides.

    Ray itself takes 20 to 80 seconds, and many lines on stderr, to find out that it cannot join.
    """
    if os.environ.get("RAY_USE_TLS") == "1":
        return
    if _lets_in(address, None, where):
        return
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode is not None and mode.lower() != "token":
        raise ClusterUnavailableError(
            f"the Ray cluster at {where} wants a token, but RAY_AUTH_MODE is {mode!r}; unset it, or set it to token"
        )
    raylet: Any = importlib.import_module("ray._raylet")
    token = raylet.AuthenticationTokenLoader.instance().get_raw_token(ignore_auth_mode=True)
    if not token or not _lets_in(address, token, where):
        fault = "refuses the token that is set here" if token else "wants a token, and none is set here"
        raise ClusterUnavailableError(
            f"the Ray cluster at {where} {fault}; copy ~/.ray/auth_token from where the cluster was started, or set "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        )
    os.environ["RAY_AUTH_MODE"] = "token"
    raylet.Config.initialize("")  # Ray reads the variable when it is imported, maybe long before this


def _lets_in(address: str, token: str | None, where: str) -> bool:
    """Whether a living Ray cluster answers with this token, or without one."""
    import grpc  # type: ignore[import-untyped]

    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        alive = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            alive(b"", timeout=PROBE_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return False
            raise ClusterUnavailableError(f"no Ray cluster answers at {where}. {HOW_TO_START}") from None
    return True


def controller() -> Any:
    """The handle of the orchestrator in the connected cluster.

    Raises:
        ClusterUnavailableError: Ray runs, but no orchestrator runs on it.
    """
    import ray

    try:
        return ray.get_actor(CONTROLLER, namespace=NAMESPACE)
    except ValueError:
        address = ray.get_runtime_context().gcs_address
        raise ClusterUnavailableError(
            f"Ray runs at {address}, but no orchestrator runs on it. Start it with `loray serve --address {address}`."
        ) from None


def start_controller(config: ClusterConfig) -> bool:
    """Starts the orchestrator on the connected cluster unless it runs already; returns whether it was started."""
    from orchestrator.control.controller import start_or_attach_controller

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

    with _any_agent_port():
        context = ray.init(
            address="local",
            namespace=NAMESPACE,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
        )
    return replace(_connection(context), started=True, orchestrator_started=True)


@contextlib.contextmanager
def _any_agent_port() -> Iterator[None]:
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
                connection = _join(found)
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
