"""The GPUs of this machine, without torch and without taking any of them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

_QUERY = ("nvidia-smi", "--query-gpu=memory.total,name", "--format=csv,noheader,nounits")
_SECONDS = 30.0


@dataclass(frozen=True)
class Accelerator:
    """One GPU.

    Attributes:
        name: What it calls itself, as torch does.
        total_bytes: Its memory.
    """

    name: str
    total_bytes: int


def accelerators() -> list[Accelerator]:
    """Every GPU of this machine, visible to this process or not; none where nobody can tell."""
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return read_accelerators(done.stdout)


def read_accelerators(text: str) -> list[Accelerator]:
    """What nvidia-smi printed: a line for each GPU, MiB and name. Lines without a number (`[N/A]`) are left out."""
    gpus = []
    for line in text.splitlines():
        size, _, name = line.partition(",")
        if size.strip().isdigit():
            gpus.append(Accelerator(name.strip(), int(size) * 2**20))
    return gpus
