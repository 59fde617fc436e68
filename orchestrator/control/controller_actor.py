"""The orchestrator as a Ray actor: the one of the cluster, which is started if none runs."""

from __future__ import annotations

from typing import Any

import ray

from gpu_actor.contract.errors import ClusterUnavailableError
from gpu_actor.paths.locations import loray_home
from orchestrator.cluster.cluster_config import ClusterConfig
from orchestrator.cluster.connection import CONTROLLER, NAMESPACE
from orchestrator.cluster.environment import shared_environment
from orchestrator.cluster.places import HEAD
from orchestrator.control.controller import Controller

_START_SECONDS = 90.0
_MOST_CALLS = 100_000  # under way at a time; every job that runs holds one, every job that waits another


def start_or_attach_controller(config: ClusterConfig) -> Any:
    """The handle of the orchestrator on the connected cluster, which is started if none runs.

    Args:
        config: The cluster file of one that has to be started; one that runs keeps its own.

    Raises:
        ClusterUnavailableError: It could not be started; the message says why.
    """
    # Not by concurrency groups: Ray runs each in a thread with an event loop of its own.
    remote = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=_MOST_CALLS)(Controller)
    handle = remote.options(
        enable_task_events=False,  # `dashboard_rows` has those that people look for
        name=CONTROLLER,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        resources={HEAD: 0.001},
        runtime_env={"env_vars": {**shared_environment(), "LORAY_HOME": str(loray_home())}},
    ).remote(config.model_copy(update={"allowed_roots": config.roots}))  # by the folder where we are, not where it is
    try:
        ray.get(handle.ping.remote(), timeout=_START_SECONDS)
    except ray.exceptions.RayActorError as error:
        last = [line for line in str(error).splitlines() if line.strip()][-1]
        raise ClusterUnavailableError(f"the orchestrator cannot start: {last.rpartition('Error: ')[2]}") from None
    except ray.exceptions.GetTimeoutError:
        raise ClusterUnavailableError(
            f"the orchestrator did not start within {_START_SECONDS:.0f} s; `ray status` and its log "
            f"(`ray logs actor`) show why"
        ) from None
    return handle
