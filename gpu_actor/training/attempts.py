"""What was tried and raised: kept without what it held in memory, and told in words."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from gpu_actor.batch.pairs import PairTask
from gpu_actor.batch.shared_batch import MicroBatch
from gpu_actor.contract.errors import LorayError, OutOfMemoryError
from gpu_actor.contract.messages import one_line
from gpu_actor.device.failures import is_device_lost

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


def attempt(work: Callable[[], _Result]) -> _Result | Exception:
    """The result of `work`, or what it raised: without its frames, which would keep the failed forward in memory."""
    try:
        return work()
    except Exception as error:
        if is_device_lost(error):
            raise
        logger.debug("a forward failed", exc_info=True)
        return error.with_traceback(None)


def too_long(micro_batches: Sequence[MicroBatch], error: Exception) -> OutOfMemoryError:
    """The smallest possible micro-batch ran out of memory."""
    longest = max(micro_batches, key=lambda micro_batch: micro_batch.tokens)
    what = "sample" if not isinstance(longest.task, PairTask) else "preference pair"
    return OutOfMemoryError(
        f"one {what} of {longest.tokens} tokens does not fit into the actor's memory; lower training.cutoff_len if "
        f"that is long, else lora.r, or use an actor with more memory ({one_line(error)})"
    )


def reason_of(error: Exception) -> str:
    """A failure in words: Loray's own errors as they are, others with their type."""
    return str(error) if isinstance(error, LorayError) else f"{type(error).__name__}: {one_line(error)}"
