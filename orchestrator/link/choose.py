"""Which way to the orchestrator is taken."""

from __future__ import annotations

import os
import sys
from typing import Any

from gpu_actor.contract.errors import ClusterUnavailableError
from gpu_actor.paths.locations import loray_home
from orchestrator.endpoint.door_file import read_door_file
from orchestrator.link.base import Link
from orchestrator.link.http_link import HttpLink

_SCHEMES = ("http://", "https://")


def is_elsewhere(address: str | None) -> bool:
    """Whether an address, or else `LORAY_ADDRESS`, is that of a door: the orchestrator then sees no file of ours."""
    return (address or os.environ.get("LORAY_ADDRESS") or "").startswith(_SCHEMES)


def find_link(address: str | None, token: str | None) -> Link:
    """The way to the orchestrator.

    Args:
        address: URL of a door, or `host:port` of a Ray cluster; None looks whether this process is in a Ray cluster, at
            `LORAY_ADDRESS`, at `RAY_ADDRESS`, for a door of this machine, and for a cluster started on it.
        token: For a door; None looks at `LORAY_TOKEN`.

    Raises:
        ClusterUnavailableError: No orchestrator answers.
    """
    if address is None and _is_in_ray():
        return _ray_link(None)
    address = address or os.environ.get("LORAY_ADDRESS") or None
    token = token or os.environ.get("LORAY_TOKEN") or None
    if address is not None and address.startswith(_SCHEMES):
        return HttpLink(address, token or _token_of(address), is_elsewhere=True)
    if address is None and not os.environ.get("RAY_ADDRESS"):
        door = read_door_file(loray_home())
        if door is not None and _lives(door.pid):
            try:
                return HttpLink(door.url, door.token, is_elsewhere=False)
            except ClusterUnavailableError:
                pass  # its orchestrator is just being restarted; Ray waits for it
    return _ray_link(address)


def _ray_link(address: str | None) -> Link:
    from orchestrator.link.ray_link import RayLink  # not above: a verb that takes the door needs none of it

    return RayLink(address)


def _token_of(url: str) -> str:
    """The operator's token, if the door is the one of this machine."""
    door = read_door_file(loray_home())
    if door is None or door.url != url.rstrip("/"):
        raise ClusterUnavailableError(
            f"{url} wants a token; set LORAY_TOKEN to one that `loray token add NAME` printed there"
        )
    return door.token


def _is_in_ray() -> bool:
    ray: Any = sys.modules.get("ray")
    return bool(ray and ray.is_initialized())


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
