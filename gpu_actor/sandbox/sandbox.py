"""The side that asks: requests are done in processes with limits, whose end is an error and nothing more."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from gpu_actor.contract import errors
from gpu_actor.contract.errors import KilledError, LorayError
from gpu_actor.contract.limits import Limits
from gpu_actor.contract.messages import shortened
from gpu_actor.sandbox.channel import BrokenMessageError, Channel, Message, Parts
from gpu_actor.sandbox.server import PLAIN, STATUS, WARM

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_ENVIRONMENT = {**_ONE_THREAD, "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
_LONGEST_WORDS = 20_000
_DIED_OF_MEMORY = {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS}  # in code that does not ask whether it was given any

Take = Callable[[Message, Parts], None]


class OverLimitError(LorayError, RuntimeError):
    """What was to be done took more memory or time than it may; the message says which: `takes more than ...`."""


def _ignore(_message: Message, _parts: Parts) -> None:
    """For tasks that send nothing before they are done."""


class Sandbox:
    """Requests of one kind, each done in a process of its own; any thread may ask.

    Attributes:
        highest: Bytes of the largest resident set that a process of it had.
    """

    def __init__(self, tasks: str, setup: Mapping[str, Any], limits: Limits) -> None:
        """Nothing is started before the first request.

        Args:
            tasks: The module with the tasks, see `gpu_actor.sandbox.server`.
            setup: What its `warm` is given.
            limits: Of each process.
        """
        self._tasks, self._setup, self.limits = tasks, dict(setup), limits
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self.highest = 0

    def call(self, task: str, request: Mapping[str, Any], *, warm: bool, take: Take = _ignore) -> Message:
        """Have a request done.

        Args:
            task: Its name in the module's `TASKS`.
            request: What is JSON.
            warm: Whether it needs what `warm` makes; it is then made once for all.
            take: Is given what the task sends before it is done. What it raises ends the request.

        Raises:
            OverLimitError: It took too much.
            KilledError: Somebody killed it: it may do better another time. What it had sent was taken.
            LorayError: What the task raised.
        """
        result, status = self._begin(WARM if warm else PLAIN)
        channel = Channel(result)
        with status, contextlib.closing(channel):
            answer: Message | None = None
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, BrokenMessageError):
                channel.send({**request, "task": task})
                while answer is None and (received := channel.receive()) is not None:
                    message, parts = received
                    if "part" in message:
                        take(message, parts)
                    else:
                        answer = message
            channel.close()
            ended = self._end_of(status)
        return self._result(answer, ended)

    def close(self) -> None:
        """End the process that makes the others."""
        with self._lock:
            self._stop()

    def _begin(self, kind: bytes) -> tuple[socket.socket, socket.socket]:
        """The ends of a new request: for the messages, and for how it ended."""
        result, far_result = socket.socketpair()
        status, far_status = socket.socketpair()
        with far_result, far_status, self._lock:
            ends = [far_result.fileno(), far_status.fileno()]
            for again in (False, True):
                if self._control is None or (self._server is not None and self._server.poll() is not None):
                    self._control = self._start()
                try:
                    socket.send_fds(self._control, [kind], ends)
                    break
                except OSError:  # it has ended since
                    if again:
                        raise
                    self._stop()
        return result, status

    def _start(self) -> socket.socket:
        self._stop()
        ours, theirs = socket.socketpair()
        settings = json.dumps({"setup": self._setup, "limits": self.limits._asdict()})
        command = [sys.executable, "-m", "gpu_actor.sandbox.server", str(theirs.fileno()), self._tasks, settings]
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = {**os.environ, **_ENVIRONMENT, "PYTHONPATH": paths}
        with theirs:
            self._server = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # a terminal's Ctrl-C is for whoever started it
            )
        return ours

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._server is not None:
            self._server.kill()
            self._server.wait()
        self._control = self._server = None

    def _end_of(self, status: socket.socket) -> int:
        """The exit code of the process, or of the one that was to make it; a signal that ended it is negative."""
        told = status.recv(STATUS.size, socket.MSG_WAITALL)
        if len(told) == STATUS.size:
            ended, highest = STATUS.unpack(told)
            self.highest = max(self.highest, highest)
            return os.waitstatus_to_exitcode(ended)
        with self._lock:
            if self._server is None:
                return -signal.SIGKILL
            with contextlib.suppress(subprocess.TimeoutExpired):  # a new one works by now
                return self._server.wait(1)
            return -signal.SIGKILL

    def _result(self, answer: Message | None, ended: int) -> Message:
        if answer is not None and "done" in answer:
            done: Message = answer["done"]
            return done
        if answer is not None and "error" in answer:
            raise _error(str(answer["error"]), shortened(str(answer.get("message")), _LONGEST_WORDS))
        if answer is None and ended == -signal.SIGKILL:  # none of its limits ends it so
            raise KilledError("was killed; most likely its machine has no memory left")
        if ended == -signal.SIGXCPU:
            raise OverLimitError(f"takes more than {self.limits.seconds} s of processor time")
        if answer is not None or -ended in _DIED_OF_MEMORY:
            raise OverLimitError(f"takes more than {self.limits.memory / 2**30:.2g} GiB of memory")
        raise OverLimitError(f"ends the process that does it ({ended})")


def _error(name: str, message: str) -> LorayError:
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, LorayError):
        return kind(message)
    return LorayError(f"{name}: {message}")
