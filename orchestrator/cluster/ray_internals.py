"""The private corners of Ray that Loray uses, and what happens with a Ray that lacks one.

Ray promises none of these names. They were looked up in Ray 2.50 to 2.53 and in 2.60:

- `ray._private.parameter.RayParams(dashboard_agent_listen_port=...)`: in all of them. Without it the agent of a Ray
  that Loray starts listens at Ray's own port, and beside a second Ray `ray job submit` is refused.
- `ray._private.services.ConsolePopen`: in 2.60. Without it Ray's own processes hear the signals that are sent to the
  process group of a `loray run`, and end before it can end its jobs in order.
- `ray._private.ray_constants.ENABLE_RAY_CLUSTER` and the variable `RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER`: in all of them.
  Without them Ray's own processes listen on every interface of the machine.
- `ray._private.services.canonicalize_bootstrap_address`: in all of them. Without it `ray.init` resolves `auto`, and
  takes its own long way to find out that a cluster does not let it in.
- the gRPC method `/ray.rpc.NodeInfoGcsService/CheckAlive`: in all of them. Without it, or without the package `grpc`,
  whatever listens at the address passes for a cluster that lets everybody in, and `ray.init` finds out what it is.
- `ray._raylet.AuthenticationTokenLoader.get_raw_token(ignore_auth_mode=True)`: since 2.53. In 2.52 it has no such
  argument; Ray 2.50 and 2.51 have no tokens. Without it the token is read where Ray's documentation puts it.
- `ray._raylet.Config.initialize`: seen in 2.50, 2.52 and 2.60. Without it Ray goes on with the `RAY_AUTH_MODE` that it
  read when it was imported, and `ray.init` says that it is refused.
- the variable `RAY_JOB_CONFIG_JSON_ENV_VAR`, and what `ray job submit` keeps in Ray's key-value store under
  `_ray_internal_job_info_ID`: seen in 2.60. Without them a Ray job does not tell which LoRA jobs came with it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
import os
from collections.abc import Iterator, Mapping
from enum import Enum, auto
from pathlib import Path
from typing import Any

from orchestrator.cluster.address import PROBE_SECONDS, answers, host_and_port

_MISSING = (ImportError, AttributeError)
_JOB_KEY, _JOB_NAMESPACE = "_ray_internal_job_info_{}", b"job"


class Access(Enum):
    """What a cluster says to a process that wants to join."""

    GRANTED = auto()
    WRONG_TOKEN = auto()  # or none, where it wants one
    NO_ANSWER = auto()


@contextlib.contextmanager
def any_agent_port() -> Iterator[None]:
    """Lets the agent of a Ray that is started meanwhile listen at any free port.

    `ray job submit` comes in through it. Ray takes port 52365 and `ray.init` has no option for another, so that beside
    a second Ray on the machine the agent would be deaf, and every `ray job submit` refused.
    """
    option = "dashboard_agent_listen_port"
    try:
        params: Any = importlib.import_module("ray._private.parameter").RayParams
    except _MISSING:
        yield
        return
    original = params.__init__
    if option in inspect.signature(original).parameters:
        # None: Ray 2.50 chooses a port where none is given, and takes a 0 in some places for one that was
        params.__init__ = functools.partialmethod(original, **{option: None})
    try:
        yield
    finally:
        params.__init__ = original


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """Lets a Ray that is started or joined meanwhile be at 127.0.0.1, where no other machine reaches it.

    On macOS and Windows Ray does so by itself, to spare people their firewall's questions. On Linux even a node that is
    told to be at 127.0.0.1 looks for another address, and all its processes but the dashboard listen everywhere.
    """
    variable = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # read by the processes that are started
    before = os.environ.get(variable)
    try:
        constants: Any = importlib.import_module("ray._private.ray_constants")
        enabled = constants.ENABLE_RAY_CLUSTER
    except _MISSING:
        yield
        return
    constants.ENABLE_RAY_CLUSTER, os.environ[variable] = False, "0"
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = enabled
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def hides_on_loopback(address: str | None) -> bool:
    """Whether a cluster is one that `loopback_only` made: it answers at 127.0.0.1 and at no other address of here.

    Args:
        address: `host:port` of its head.
    """
    host_port = host_and_port(address or "")
    if host_port is None or host_port[0] not in ("127.0.0.1", "localhost", "::1"):
        return False
    try:
        here: Any = importlib.import_module("ray._private.services").get_node_ip_address
    except _MISSING:
        return False
    return not answers(f"{here()}:{host_port[1]}")


@contextlib.contextmanager
def sessions_of_their_own() -> Iterator[None]:
    """Puts the processes of a Ray that is started meanwhile out of reach of signals to our process group.

    `timeout`, shells and process managers signal the whole group: Ray would end at once, and with it the way to tell
    the jobs. The kernel still ends these processes with this one (Ray asks it to), whatever it dies of.
    """
    try:
        services: Any = importlib.import_module("ray._private.services")
        original = services.ConsolePopen
    except _MISSING:
        yield
        return
    services.ConsolePopen = functools.partial(original, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = original


def resolve_auto() -> str | None:
    """`host:port` of the cluster that Ray means by `auto`; None: only `ray.init` can tell.

    Raises:
        ConnectionError: There is none.
    """
    try:
        resolve: Any = importlib.import_module("ray._private.services").canonicalize_bootstrap_address
    except _MISSING:
        return None
    with loopback_only():  # else it takes 127.0.0.1 for a mistake
        address = resolve("auto")
    return None if address is None else str(address)


def probe_access(address: str, token: str | None) -> Access:
    """Whether a living Ray cluster answers with this token, or without one.

    Ray itself takes 20 to 80 seconds, and many lines on stderr, to find out that it cannot join.

    Args:
        address: `host:port`.
        token: None to come without one.
    """
    try:
        import grpc  # type: ignore[import-untyped]
    except ImportError:
        return Access.GRANTED if answers(address) else Access.NO_ANSWER
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", PROBE_SECONDS, metadata)
        except grpc.RpcError as error:
            by_code = {
                grpc.StatusCode.UNAUTHENTICATED: Access.WRONG_TOKEN,
                grpc.StatusCode.UNIMPLEMENTED: Access.GRANTED,  # it answers, but has another name for this
            }
            return by_code.get(error.code(), Access.NO_ANSWER)
    return Access.GRANTED


def auth_token() -> str | None:
    """The token that is set on this machine, whatever `RAY_AUTH_MODE` says; None: there is none."""
    try:
        loader: Any = importlib.import_module("ray._raylet").AuthenticationTokenLoader.instance()
        token = loader.get_raw_token(ignore_auth_mode=True)
    except (*_MISSING, TypeError):  # TypeError: it does not know the argument
        token = _documented_token()
    return token or None


def _documented_token() -> str:
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def reread_environment() -> None:
    """Makes Ray look at `RAY_AUTH_MODE` again, which it read when it was imported, maybe long before it was set."""
    with contextlib.suppress(*_MISSING):
        config: Any = importlib.import_module("ray._raylet").Config
        config.initialize("")


def submission_id() -> str | None:
    """The id of the Ray job that this process was started by (`ray job submit`); None: by none."""
    try:
        return str(json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]["job_submission_id"])
    except (KeyError, ValueError, TypeError):
        return None


def ray_job_metadata(submission: str) -> dict[str, str]:
    """The metadata of a Ray job of the connected cluster; empty where this Ray keeps them elsewhere."""
    return dict((_ray_job(submission) or {}).get("metadata") or {})


def set_ray_job_metadata(submission: str, metadata: Mapping[str, str]) -> None:
    """Writes the metadata of a Ray job of the connected cluster; Ray has a way to do so before it starts only."""
    job = _ray_job(submission)
    if job is not None:
        store: Any = importlib.import_module("ray.experimental.internal_kv")
        value = json.dumps({**job, "metadata": dict(metadata)}).encode()
        store._internal_kv_put(_JOB_KEY.format(submission), value, overwrite=True, namespace=_JOB_NAMESPACE)


def _ray_job(submission: str) -> dict[str, Any] | None:
    try:
        store: Any = importlib.import_module("ray.experimental.internal_kv")
        value = store._internal_kv_get(_JOB_KEY.format(submission), namespace=_JOB_NAMESPACE)
        job = json.loads(value)
    except (*_MISSING, TypeError, ValueError):
        return None
    return job if isinstance(job, dict) else None
