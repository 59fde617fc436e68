"""What GPUs the nodes of the cluster, or this machine, have, so that memory is known before the first actor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from gpu_actor.device.accelerators import Accelerator, accelerators
from orchestrator.cluster.cluster_config import ActorConfig
from orchestrator.cluster.places import HEAD, Place, configured_places

logger = logging.getLogger("loray.node_gpus")

ASK_SECONDS = 60.0  # that a submission waits for the answers


def ask_node(node_id: str) -> Any:
    """A Ray task on a node that lists its GPUs; it takes none of them."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    where = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return (
        ray.remote(num_cpus=0, max_calls=1, enable_task_events=False)(accelerators)
        .options(scheduling_strategy=where)
        .remote()
    )


class NodeGpus:
    """The GPUs of each node, as far as the nodes have answered."""

    def __init__(self, ask: Callable[[str], Any] = ask_node) -> None:
        """Nobody is asked yet.

        Args:
            ask: Gives an awaitable of the GPUs of a node, by its id.
        """
        self._ask_node = ask
        self._requests: dict[str, asyncio.Task[None]] = {}
        self._gpus: dict[str, list[Accelerator]] = {}

    def ask(self, nodes: Iterable[Mapping[str, Any]]) -> None:
        """Ask the nodes that have GPUs and were not asked yet. Must be called in a running event loop.

        Args:
            nodes: As `ray.nodes()` gives them.
        """
        for node in nodes:
            name = node["NodeID"]
            if node["Alive"] and node["Resources"].get("GPU") and name not in self._requests:
                self._requests[name] = asyncio.create_task(self._take_in(name))

    async def _take_in(self, node_id: str) -> None:
        try:
            self._gpus[node_id] = await self._ask_node(node_id)
        except Exception as error:  # then its memory is known when an actor there reports, as on other devices
            logger.warning("the GPUs of node %s could not be asked for: %s", node_id, " ".join(str(error).split()))

    async def settled(self) -> None:
        """Wait a while until every node that was asked has answered."""
        if self._requests:
            await asyncio.wait(self._requests.values(), timeout=ASK_SECONDS)

    def at(self, node_id: str | None) -> Accelerator | None:
        """The roomiest GPU of a node, or of all nodes where Ray chooses one (None); None: no node has listed one yet.

        Where GPUs differ it is open which one an actor gets, and what fits on one of them must not be refused.
        """
        nodes = self._gpus.values() if node_id is None else [self._gpus.get(node_id, [])]
        return _roomiest(gpu for gpus in nodes for gpu in gpus)


def places_on_this_machine(actors: Literal["auto"] | Sequence[ActorConfig]) -> list[Place]:
    """The places that a cluster file would have if this machine alone were the cluster. No Ray is asked or started.

    Args:
        actors: The cluster file's list, or `auto`.
    """
    gpu_count = 0  # a list says by itself how many places there are
    if actors == "auto":
        import torch

        gpu_count = torch.cuda.device_count()
    node = {"NodeID": "here", "Alive": True, "Resources": {HEAD: 1.0, "GPU": gpu_count}}
    gpu = _roomiest(accelerators())
    return [place.on(gpu) for place in configured_places(actors, [node])]


def _roomiest(gpus: Iterable[Accelerator]) -> Accelerator | None:
    return max(gpus, key=lambda gpu: gpu.total_bytes, default=None)
