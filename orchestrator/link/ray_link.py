"""Through Ray: for processes that are in the cluster already, and where there is no door."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpu_actor.contract.errors import ClusterUnavailableError, LorayError
from orchestrator.cluster import connection
from orchestrator.link.base import POLL_SECONDS, RETRY_SECONDS

if TYPE_CHECKING:
    import ray


class RayLink:
    """Calls of the orchestrator's Ray actor; see `Link`."""

    is_elsewhere = False

    def __init__(self, address: str | None) -> None:
        """Join the cluster.

        Args:
            address: As for `connection.connect`.

        Raises:
            ClusterUnavailableError: No orchestrator answers.
        """
        self.address = connection.connect(address).address
        self._controller = connection.controller()

    def call(self, method: str, arguments: Sequence[Any], timeout: float, *, again: bool) -> Any:
        """See `Link`."""
        import ray

        deadline = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                ref = getattr(self._controller, method).remote(*arguments)
                connection.wait_for_answer(ref, timeout)
                return ray.get(ref, timeout=0)
            except ray.exceptions.RayTaskError as error:
                raise _orchestrator_error(error) from None
            except ray.exceptions.GetTimeoutError:
                raise ClusterUnavailableError(
                    f"the orchestrator did not answer within {timeout:.0f} s; `ray status` and the Ray dashboard "
                    "show whether its node is alive"
                ) from None
            except ray.exceptions.RayError as error:
                if not again or time.monotonic() > deadline:
                    raise ClusterUnavailableError(f"the orchestrator is gone: {error}") from None
                time.sleep(POLL_SECONDS)
                self._controller = connection.controller()


def _orchestrator_error(error: ray.exceptions.RayTaskError) -> LorayError:
    """The error that the orchestrator raised, out of Ray's wrapping."""
    cause = error.cause
    if isinstance(cause, LorayError):
        return cause
    return LorayError(f"the orchestrator failed on this request ({cause!r}); its log in the Ray dashboard has more")
