"""A process of this machine that loads a model, for which the orchestrator and its commands have no torch."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

from gpu_actor.contract.errors import LorayError


def lines_of(module: str, arguments: Sequence[str], request: str) -> Iterator[str]:
    """What a module of `gpu_actor` writes, line by line, when it is run as a command; it ends with the iteration.

    Args:
        module: Its name.
        arguments: Of its command line.
        request: What it reads.

    Raises:
        LorayError: It fails; the message is its own.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
        )
        try:
            if process.stdin is None or process.stdout is None:
                raise RuntimeError("a process without pipes")
            process.stdin.write(request)
            process.stdin.close()
            yield from process.stdout
            if process.wait():
                errors.seek(0)
                said = errors.read().strip().splitlines()
                raise LorayError(said[-1] if said else f"{module} ended with {process.returncode}")
        finally:
            process.kill()
            process.wait()
