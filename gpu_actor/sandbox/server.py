"""The process that makes the processes with limits: `python -m gpu_actor.sandbox.server DESCRIPTOR MODULE SETUP`.

For each request it forks: what took seconds to import is there at once, and whatever a request does to its process, the
next one begins without it. MODULE has `TASKS`, and `warm`, which makes before the fork what all of them need.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn, Protocol

from gpu_actor.contract.errors import LorayError
from gpu_actor.contract.limits import Limits, confine, grant, lift, lift_memory
from gpu_actor.sandbox.channel import Channel, Message

PLAIN, WARM = b"p", b"w"
"""What comes with the two ends of a request: whether `warm` is to be called first, unless it has been."""
STATUS = struct.Struct("<iq")
"""What follows on the second end: how the process ended, as `os.waitpid` has it, and its largest resident set."""

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
Warm = Callable[[], Any]
Task = Callable[[Message, Warm, Channel, Callable[[], None]], Message]
"""Does a request. It is given what `warm` made, the channel for what it sends before it is done, and what grants it as
much processor time as it had at first."""


class Tasks(Protocol):
    """What MODULE has."""

    TASKS: Mapping[str, Task]

    def warm(self, setup: Message) -> Any:
        """Make what tasks need; slow, and the same for all."""


class _Server:
    def __init__(self, tasks: Tasks, setup: Message, limits: Limits) -> None:
        self._tasks, self._setup, self._limits = tasks, setup, limits
        self._warmed: Warm | None = None

    def serve(self, control: socket.socket) -> None:
        """Fork for each request, until nobody can send one any more."""
        while True:
            kind, ends, *_ = socket.recv_fds(control, 1, 2)
            if not kind:
                return
            result, status = (socket.socket(fileno=end) for end in ends)
            if kind == WARM:
                self._warm()
            if not os.fork():
                control.close()
                self._keep(result, status)
            result.close()
            status.close()

    def _warm(self) -> None:
        if self._warmed is not None:
            return
        grant(self._limits.seconds)
        try:
            made = self._tasks.warm(self._setup)
            self._warmed = lambda: made
        except (LorayError, MemoryError) as error:
            self._warmed = partial(_raise, error)
        lift()
        gc.collect()
        gc.freeze()  # the processes share it as long as nobody writes to it

    def _keep(self, result: socket.socket, status: socket.socket) -> NoReturn:
        """The process between: it waits for the one with limits, and tells how that ended."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        child = os.fork()
        if not child:
            status.close()
            self._work(Channel(result))
        result.close()
        _, ended, used = os.wait4(child, 0)
        with contextlib.suppress(OSError):
            status.sendall(STATUS.pack(ended, used.ru_maxrss * _MAXRSS_UNIT))
        os._exit(0)

    def _work(self, channel: Channel) -> NoReturn:
        try:
            received = channel.receive()
            if received is not None:
                confine(self._limits)
                channel.send(self._answer(received[0], channel))
        except OSError:  # nobody waits for the answer
            os._exit(1)
        os._exit(0)

    def _answer(self, request: Message, channel: Channel) -> Message:
        warm = self._warmed or partial(self._tasks.warm, self._setup)
        allow = partial(grant, self._limits.seconds)
        try:
            return {"done": self._tasks.TASKS[request["task"]](request, warm, channel, allow)}
        except MemoryError:
            lift_memory()
            return {"memory": True}
        except OSError as error:
            if isinstance(error, (BrokenPipeError, ConnectionError)):
                raise
            return {"error": type(error).__name__, "message": str(error)}
        except Exception as error:
            return {"error": type(error).__name__, "message": str(error)}


def _raise(error: Exception) -> NoReturn:
    raise error


def main() -> None:
    """Serve until the other end is closed."""
    descriptor, module, text = sys.argv[1:]
    settings = json.loads(text)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes between
    limits = Limits(**settings["limits"])
    tasks: Any = importlib.import_module(module)
    confine(limits)
    lift()
    _Server(tasks, settings["setup"], limits).serve(socket.socket(fileno=int(descriptor)))


if __name__ == "__main__":
    main()
