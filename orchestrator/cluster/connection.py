"""Joining the Ray cluster that Loray runs on."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

from gpu_actor.contract.errors import ClusterUnavailableError, LorayError
from orchestrator.cluster.address import ClusterAddress, answers, checked, find_address, host_and_port
from orchestrator.cluster.ray_internals import (
    Access,
    auth_token,
    hides_on_loopback,
    loopback_only,
    probe_access,
    reread_environment,
    resolve_auto,
    submission_id,
)

NAMESPACE = "loray"
HIDDEN = "_ray_internal_loray"  # Ray's dashboard lists no driver of a namespace that begins so
CONTROLLER = "loray-controller"
_LOOK_SECONDS = 2.0  # that an answer may take before it is looked whether Ray still runs

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
    cluster = find_address(address)
    if cluster is None:
        raise ClusterUnavailableError(f"no Loray cluster is running here. {HOW_TO_START}")
    return join(cluster, hidden=True)


def _check_same(address: str, current: str) -> None:
    """Refuses a second cluster in one process; two names of one host with the same port pass."""
    given, joined = host_and_port(address), host_and_port(current)
    if given and joined and given[1] == joined[1]:
        return
    raise ClusterUnavailableError(
        f"this process is connected to Ray at {current} already and cannot join {address} as well; "
        "call ray.shutdown() first, or leave the address out"
    )


def join(cluster: ClusterAddress, *, hidden: bool = False) -> Connection:
    """Joins a Ray cluster.

    Args:
        cluster: Where it is.
        hidden: Whether to be no row on the Jobs page of Ray's dashboard. An actor that is started in this process then
            has no row there either under which its tasks are found.

    Raises:
        ClusterUnavailableError: It does not answer, or does not let this process in.
    """
    import ray

    where = f"{cluster.address} (from {cluster.source})"
    try:
        address = resolve_auto() if cluster.address == "auto" else cluster.address
        if address:
            _use_auth_mode(address, where)
        here = loopback_only() if hides_on_loopback(address) else contextlib.nullcontext()
        with here:
            context = ray.init(
                address=address or "auto",
                namespace=HIDDEN if hidden and submission_id() is None else NAMESPACE,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if isinstance(error, LorayError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ClusterUnavailableError(f"cannot join the Ray cluster at {where}: {reason}") from None
    return connection_of(context)


def connection_of(context: Any) -> Connection:
    """The link that `ray.init` made."""
    url = context.dashboard_url
    return Connection(context.address_info["gcs_address"], f"http://{url}" if url else None)


def _use_auth_mode(address: str, where: str) -> None:
    """Finds out whether the cluster wants a token, and sets `RAY_AUTH_MODE` to that unless the environment decides."""
    if os.environ.get("RAY_USE_TLS") == "1":
        return
    if _lets_in(address, None, where):
        return
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode is not None and mode.lower() != "token":
        raise ClusterUnavailableError(
            f"the Ray cluster at {where} wants a token, but RAY_AUTH_MODE is {mode!r}; unset it, or set it to token"
        )
    token = auth_token()
    if not token or not _lets_in(address, token, where):
        fault = "refuses the token that is set here" if token else "wants a token, and none is set here"
        raise ClusterUnavailableError(
            f"the Ray cluster at {where} {fault}; copy ~/.ray/auth_token from where the cluster was started, or set "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        )
    os.environ["RAY_AUTH_MODE"] = "token"
    reread_environment()


def _lets_in(address: str, token: str | None, where: str) -> bool:
    access = probe_access(address, token)
    if access is Access.NO_ANSWER:
        raise ClusterUnavailableError(f"no Ray cluster answers at {where}. {HOW_TO_START}")
    return access is Access.GRANTED


def wait_for_answer(ref: Any, timeout: float) -> None:
    """Waits for the answer of a call, as long as there is a cluster to wait for; without one Ray would for a minute.

    Args:
        ref: Of the call.
        timeout: Seconds to wait at most.

    Raises:
        ClusterUnavailableError: Ray has ended.
    """
    import ray

    deadline = time.monotonic() + timeout
    address = ray.get_runtime_context().gcs_address
    while True:
        left = deadline - time.monotonic()
        done, _ = ray.wait([ref], timeout=max(0.0, min(_LOOK_SECONDS, left)))
        if done or left <= _LOOK_SECONDS:
            return
        if not runs(address):
            raise ClusterUnavailableError(
                f"Ray at {address} has ended: its head was stopped or killed. Jobs and their states are kept; "
                "`loray serve`, or `loray run` with the same file, goes on with them from their last checkpoints"
            )


def runs(address: str) -> bool:
    """Whether the connected cluster still runs: its head, and Ray's own process on this node.

    Ray itself finds out only after a minute or two that the second is gone.

    Args:
        address: `host:port` of its head.
    """
    import ray

    if not answers(address):
        return False
    here = ray.get_runtime_context().get_node_id()
    raylets = [
        (n["NodeManagerAddress"], n["NodeManagerPort"]) for n in ray.nodes() if n["NodeID"] == here and n["Alive"]
    ]
    return any(answers(f"{host}:{port}") for host, port in raylets)


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
