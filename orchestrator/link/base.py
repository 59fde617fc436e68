"""What every way to the orchestrator has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

RETRY_SECONDS = 60.0
"""How long a call is made again that nobody answered, where it may be."""

POLL_SECONDS = 0.5


class Link(Protocol):
    """A way to the orchestrator.

    Attributes:
        address: Where it leads, for people.
        is_elsewhere: Whether files of this machine are not those of the orchestrator's.
    """

    address: str
    is_elsewhere: bool

    def call(self, method: str, arguments: Sequence[Any], timeout: float, *, again: bool) -> Any:
        """Calls a method of the orchestrator.

        Args:
            method: Its name.
            arguments: Of the call.
            timeout: Seconds to wait for the answer.
            again: The call may be repeated when the orchestrator dies before it answers.

        Raises:
            LorayError: As the orchestrator raised it.
            ClusterUnavailableError: It does not answer.
        """
