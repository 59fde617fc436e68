"""Ctrl-C, SIGTERM and SIGHUP, which end a verb in an orderly way."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP, treated like Ctrl-C but for the exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def stop_code(stop: KeyboardInterrupt) -> int:
    """The exit code of a process that was asked to stop."""
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into `Stopped`, so that what was started is shut down in order.

    To be entered after Ray is connected, because Ray installs a handler of its own.
    """

    def stop(number: int, _: FrameType | None) -> NoReturn:
        raise Stopped(number)

    old = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
