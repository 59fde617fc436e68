"""Descriptions of base models: read once in a Ray task, so that the orchestrator itself never imports torch.

What an earlier run has read is found in its file, see `orchestrator.knowledge.description_files`.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import ray

from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.errors import BaseModelError, LorayError
from gpu_actor.model.describe import describe_within_limits
from gpu_actor.paths.locations import find_base
from orchestrator.cluster.places import HEAD
from orchestrator.knowledge.description_files import description_file, recall, remember

DESCRIBE_SECONDS = 240.0
_PROCESSOR_SECONDS = 200  # the largest models take some ten
_MEMORY = 8 * 2**30
_ASK_AGAIN_SECONDS = 30.0


class BaseCatalog:
    """What is known of the base models that jobs name."""

    def __init__(self, env_vars: dict[str, str], trust_remote_code: bool = False) -> None:
        """Nothing is read yet.

        Args:
            env_vars: Environment of the reading process.
            trust_remote_code: Whether Python code that comes with a model may run.
        """
        # A fresh worker each time: one that has imported torch would go on holding hundreds of megabytes.
        # On the head node: another one may have other files at the same path.
        remote = ray.remote(
            num_cpus=0,
            max_calls=1,
            enable_task_events=False,
            resources={HEAD: 0.001},
            runtime_env={"env_vars": env_vars},
        )
        self._describe = remote(describe_within_limits)
        self._trust = trust_remote_code
        self._descriptions: dict[tuple[str, float | None], BaseDescription] = {}
        self._asked: dict[tuple[str, float | None], asyncio.Task[BaseDescription]] = {}
        self._failed: dict[tuple[str, float | None], tuple[str, float]] = {}

    async def get(self, ref: str) -> BaseDescription:
        """The description of a base model.

        Raises:
            BaseModelError: It cannot be described; the message says why.
        """
        key = _key(ref)
        if key in self._descriptions:
            return self._descriptions[key]
        if key not in self._asked:
            self._asked[key] = asyncio.create_task(self._ask(key))
        return await asyncio.shield(self._asked[key])

    def known(self, ref: str) -> BaseDescription | str:
        """The description if it is there, else why it is not, in words; it is then asked for in the background."""
        key = _key(ref)
        if key in self._descriptions:
            return self._descriptions[key]
        reason, when = self._failed.get(key, ("", 0.0))
        if key not in self._asked and time.monotonic() - when > _ASK_AGAIN_SECONDS:
            self._asked[key] = asyncio.create_task(self._ask(key))
            self._asked[key].add_done_callback(lambda task: task.cancelled() or task.exception())
        return reason or f"{ref} is being examined"

    def described(self, ref: str) -> BaseDescription | None:
        """The description if it is there; nothing is asked for."""
        return self._descriptions.get(_key(ref))

    async def _ask(self, key: tuple[str, float | None]) -> BaseDescription:
        try:
            self._descriptions[key] = await asyncio.wait_for(self._recall_or_describe(key[0]), timeout=DESCRIBE_SECONDS)
            return self._descriptions[key]
        except Exception as error:
            reason = _reason(key[0], error)
            self._failed[key] = (reason, time.monotonic())
            raise BaseModelError(reason) from None
        finally:
            del self._asked[key]

    async def _recall_or_describe(self, ref: str) -> BaseDescription:
        recalled = await asyncio.to_thread(recall, ref, self._trust)  # the disk may be slow
        if recalled is not None:
            return recalled
        file = await asyncio.to_thread(description_file, ref, self._trust)
        described = self._describe.remote(ref, self._trust, _PROCESSOR_SECONDS, _MEMORY)
        try:
            description: BaseDescription = await described
        except asyncio.CancelledError:
            ray.cancel(described, force=True)  # nobody waits for it any more
            raise
        if await asyncio.to_thread(description_file, ref, self._trust) == file:  # else it is of files that are gone
            await asyncio.to_thread(remember, description, self._trust)
        return description


def _key(ref: str) -> tuple[str, float | None]:
    """A base model and when what describes it was last written (None: not on this machine)."""
    try:
        files = find_base(ref)
        return ref, (Path(files.place) / (files.gguf_file or "config.json")).stat().st_mtime
    except (OSError, LorayError):
        return ref, None


def _reason(ref: str, error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, LorayError):
        return str(cause)
    if isinstance(cause, asyncio.TimeoutError):
        return f"{ref} could not be examined within {DESCRIBE_SECONDS:.0f} s; is the hub or its disk within reach?"
    if isinstance(cause, ray.exceptions.WorkerCrashedError):
        return (
            f"{ref} could not be examined: the process that did so was killed again and again; most likely the head "
            "node has no memory left. Make room there, and try again"
        )
    return f"{ref} could not be examined: {type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
