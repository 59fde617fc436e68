"""The end of a process in which nothing runs on the device any more: it only says so, until it is ended."""

from __future__ import annotations

import logging
import os
import threading

from gpu_actor.contract.messages import one_line
from gpu_actor.contract.report import ActorPhase
from gpu_actor.device.failures import is_device_gone, is_device_lost

logger = logging.getLogger(__name__)

_LAST_SECONDS = 120.0  # that the orchestrator has to hear of it; no longer does the process keep a device in vain


class DeviceEnd:
    """Whether the device of one process is lost.

    Attributes:
        phase: `CRASHED` or `DEVICE_GONE` once it is lost; None before.
        reason: What the device said.
    """

    def __init__(self) -> None:
        self.phase: ActorPhase | None = None
        self.reason = ""
        self._exit: threading.Timer | None = None

    def is_told_by(self, error: Exception) -> bool:
        """Whether an error says that the device is lost; from then on the process is about to end.

        Jobs go on from their checkpoints elsewhere: nobody is charged with this error.
        """
        if not is_device_lost(error):
            return False
        if self.phase is None:
            logger.critical("the device is lost, so this process ends", exc_info=error)
            self.phase = ActorPhase.DEVICE_GONE if is_device_gone(error) else ActorPhase.CRASHED
            self.reason = one_line(error)
            self._exit = threading.Timer(_LAST_SECONDS, os._exit, [1])
            self._exit.daemon = True
            self._exit.start()
        return True

    def stop(self) -> None:
        """Whoever stops the process does so without us."""
        if self._exit is not None:
            self._exit.cancel()
