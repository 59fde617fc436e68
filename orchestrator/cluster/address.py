"""Where the cluster is: an argument, the environment, or the file that a running orchestrator leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_actor.contract.errors import ClusterUnavailableError
from gpu_actor.paths.locations import loray_home
from gpu_actor.paths.private_files import private_file, private_folder

CLUSTER_FILE = "cluster.json"
PROBE_SECONDS = 5.0


@dataclass(frozen=True)
class ClusterAddress:
    """Where a cluster is, and who says so."""

    address: str
    source: str


def find_address(address: str | None = None, storage: Path | None = None) -> ClusterAddress | None:
    """Where the cluster is: the argument, else `RAY_ADDRESS`, else the storage's `cluster.json` if it is alive.

    Args:
        address: `host:port`, `auto`, or `local` for none.
        storage: The storage folder of the orchestrator; the default one when None.
    """
    for value, source in ((address, "the given address"), (os.environ.get("RAY_ADDRESS"), "RAY_ADDRESS")):
        if value == "local":
            return None
        if value:
            return ClusterAddress(checked(value, source), source)
    folder = storage or loray_home()
    running = read_cluster_file(folder)
    return ClusterAddress(running["address"], str(folder / CLUSTER_FILE)) if running else None


def checked(address: str, source: str) -> str:
    """The address itself, if it has the form of one.

    Args:
        address: What was given.
        source: Where it was given, for the message.

    Raises:
        ClusterUnavailableError: It is the address of something else.
    """
    wanted = "give the `host:port` that `ray start --head` or `loray serve` printed, or `auto`"
    if address.startswith("ray://"):
        raise ClusterUnavailableError(f"{source} is {address!r}: Ray Client addresses are not supported; {wanted}")
    if "://" in address:
        raise ClusterUnavailableError(f"{source} is {address!r}: that is Ray's dashboard, not the cluster; {wanted}")
    if address != "auto" and not host_and_port(address):
        raise ClusterUnavailableError(f"{source} is {address!r}, which is not `host:port`; {wanted}")
    return address


def host_and_port(address: str) -> tuple[str, int] | None:
    """Both parts of `host:port`, or None when it has another form."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        return None
    return host.strip("[]"), int(port)


def read_cluster_file(storage: Path) -> dict[str, Any] | None:
    """The content of `cluster.json` when the cluster that it names is alive; a stale file is removed."""
    path = storage / CLUSTER_FILE
    try:
        cluster = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        cluster = None
    if isinstance(cluster, dict) and isinstance(cluster.get("address"), str) and _alive(cluster):
        return cluster
    remove_cluster_file(storage)
    return None


def _alive(cluster: dict[str, Any]) -> bool:
    pid = cluster.get("pid")
    if isinstance(pid, int):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it lives, under another user
    return answers(cluster["address"])


def answers(address: str) -> bool:
    """Whether anything listens at `host:port`."""
    host_port = host_and_port(address)
    if host_port is None:
        return False
    try:
        socket.create_connection(host_port, timeout=PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def write_cluster_file(storage: Path, address: str, dashboard: str | None, pid: int | None) -> None:
    """Tells other processes where the cluster is. The file appears whole or not at all.

    Args:
        storage: The storage folder of the orchestrator.
        address: Host and port of the cluster.
        dashboard: URL of the Ray dashboard.
        pid: The process that the cluster ends with, if there is one.
    """
    private_folder(storage)
    draft = storage / f"{CLUSTER_FILE}.{os.getpid()}"
    cluster = {"address": address, "pid": pid, "dashboard": dashboard}
    private_file(draft)
    draft.write_text(json.dumps(cluster) + "\n", encoding="utf-8")
    draft.replace(storage / CLUSTER_FILE)


def remove_cluster_file(storage: Path) -> None:
    """Takes back what `write_cluster_file` told."""
    with contextlib.suppress(OSError):
        (storage / CLUSTER_FILE).unlink()
