"""The way of an actor to the head node's files: calls of the orchestrator."""

from __future__ import annotations

from typing import Any

import ray

from gpu_actor.contract.errors import LorayError
from gpu_actor.contract.head_files import FileRequest, ListSaved, ReadSaved
from gpu_actor.contract.messages import one_line
from gpu_actor.storage.job_folder import StorageError
from orchestrator.cluster.connection import CONTROLLER, NAMESPACE

_SECONDS = 60.0  # that an answer may take, the checksum of a large file included


class HeadLink:
    """See `gpu_actor.contract.head_files.HeadFiles`; made by the orchestrator, used in the process of an actor."""

    def __init__(self) -> None:
        """Must be called on the head node."""
        self._node_id = ray.get_runtime_context().get_node_id()

    @property
    def is_here(self) -> bool:
        """Whether this process is on the head node."""
        here: bool = ray.get_runtime_context().get_node_id() == self._node_id
        return here

    def ask(self, request: FileRequest | ListSaved | ReadSaved) -> Any:
        """What the head node answers.

        Raises:
            StorageError: It does not answer.
            LorayError: As the orchestrator raised it.
        """
        try:
            controller: Any = ray.get_actor(CONTROLLER, namespace=NAMESPACE)
            return ray.get(controller.head_files.remote(request), timeout=_SECONDS)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, LorayError):
                raise error.cause from None
            raise StorageError(f"the head node: {one_line(error)}") from None
        except (ray.exceptions.RayError, ValueError) as error:
            raise StorageError(f"the head node does not answer: {one_line(error)}") from None
