"""An output folder of this node that is filled from another one: what arrives appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

from gpu_actor.contract.errors import InvalidJobError
from gpu_actor.contract.head_files import PART_BYTES
from gpu_actor.paths import file_names
from gpu_actor.storage.checksums import checksum
from gpu_actor.storage.job_folder import StorageError

_DRAFTS = ".checkpoint-arriving.tmp"  # one of `CHECKPOINT_DRAFTS`: it goes with them
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,120}"
_NAME = re.compile(rf"(?:{_PART}/)?{_PART}")


class ArrivingOutput:
    """The output folder of one job. Every method may be repeated."""

    def __init__(self, folder: Path) -> None:
        """Nothing is asked yet."""
        self._folder, self._drafts = folder, folder / _DRAFTS

    def mark(self) -> str:
        """Make a file of a name that never was, and return its path: who sees it there shares the folder."""
        self._drafts.mkdir(parents=True, exist_ok=True)
        mark = self._drafts / secrets.token_hex(16)
        mark.touch()
        return str(mark)

    def names(self) -> set[str]:
        """The names of the files that are there, and of those in its checkpoints."""
        found = set()
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if path.name.startswith("."):
                continue
            if path.is_dir():
                found |= {f"{path.name}/{file.name}" for file in path.iterdir() if file.is_file()}
            else:
                found.add(path.name)
        return found

    def read(self, name: str, offset: int) -> bytes | None:
        """The next bytes of a file; None: it is not there."""
        try:
            return read_part(self._folder / _checked(name), offset)
        except FileNotFoundError:
            return None

    def write(self, name: str, offset: int, content: bytes) -> None:
        """Put bytes into the draft of a file."""
        draft = self._drafts / _checked(name)
        draft.parent.mkdir(parents=True, exist_ok=True)
        fresh = os.O_TRUNC if offset == 0 else 0
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | fresh, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.seek(offset)
            file.write(content)

    def finish(self, name: str, sha256: str) -> None:
        """A draft is whole: it gets its place, that of a folder with the folder's list of checksums.

        Raises:
            StorageError: It is not what was sent.
        """
        draft, place = self._drafts / _checked(name), self._folder / name
        if not draft.is_file() and place.is_file():
            draft = place  # this came before
        if not draft.is_file() or checksum(draft) != sha256:
            raise StorageError(f"{name} did not arrive whole; it is sent again")
        if draft == place:
            return
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        folder, _, file_name = name.rpartition("/")
        if not folder:
            os.replace(draft, place)
        elif file_name == file_names.CHECKSUMS:
            _remove_folder(place.parent)  # of a run that was lost
            os.rename(draft.parent, place.parent)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, and checkpoints whole."""
        for name in sorted({_checked(name).partition("/")[0] for name in names}):
            place = self._folder / name
            if place.is_dir():
                _remove_folder(place)
            else:
                place.unlink(missing_ok=True)


def read_part(path: Path, offset: int) -> bytes:
    """The next bytes of a file.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(PART_BYTES)


def _remove_folder(folder: Path) -> None:
    """Take its name away first: half removed under that name, it would pass for a whole one."""
    leftover = folder.with_name(f".{folder.name}.old.tmp")
    shutil.rmtree(leftover, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, leftover)
    shutil.rmtree(leftover, ignore_errors=True)


def _checked(name: str) -> str:
    """A name of one or two parts.

    Raises:
        InvalidJobError: It is another.
    """
    if not _NAME.fullmatch(name):
        raise InvalidJobError(f"{name!r} is no name of a file in an output folder")
    return name
