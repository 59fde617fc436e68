"""A job's folder that is not on this machine, as its mirror sees it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from gpu_actor.contract.errors import LorayError


class StorageError(LorayError, OSError):
    """A storage does not do what it is asked: it is away, it is full, or it refuses."""


class JobFolder(Protocol):
    """Files with names relative to the folder, such as `checkpoint-10/checksums.json`.

    Every method raises `StorageError` where it cannot do what it says.
    """

    def names(self) -> set[str]:
        """The names of all files."""

    def read(self, name: str) -> bytes | None:
        """The content of a file; None: there is none."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""

    def put(self, local: Path, name: str) -> None:
        """Upload a file, whole or not at all."""

    def get(self, name: str, local: Path) -> None:
        """Download a file."""

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; those that are not there are none to remove."""
