"""A job's output folder on the head node, for an actor whose node has other disks."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from gpu_actor.contract.head_files import (
    PART_BYTES,
    FinishOutput,
    HeadFiles,
    ListOutput,
    ListSaved,
    ReadOutput,
    ReadSaved,
    RemoveOutput,
    WriteOutput,
)
from gpu_actor.storage.job_folder import StorageError


class SavedOnHead:
    """The output folder of a job that may be over, to be read; see `JobFolder`. The files travel in parts."""

    def __init__(self, head: HeadFiles, folder: str) -> None:
        """Nothing is asked yet.

        Args:
            head: The way there.
            folder: Its path there.
        """
        self._head = head
        self._list: ListSaved | ListOutput = ListSaved(folder)
        self._read: Callable[[str, int], ReadSaved | ReadOutput] = partial(ReadSaved, folder)

    def names(self) -> set[str]:
        """See `JobFolder`."""
        return set(self._head.ask(self._list))

    def read(self, name: str) -> bytes | None:
        """See `JobFolder`."""
        try:
            return b"".join(self._parts(name))
        except FileNotFoundError:
            return None

    def get(self, name: str, local: Path) -> None:
        """See `JobFolder`."""
        try:
            with local.open("wb") as file:
                for part in self._parts(name):
                    file.write(part)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{name} cannot be fetched from the head node: {error}") from error

    def _parts(self, name: str) -> Iterator[bytes]:
        """The content of a file.

        Raises:
            FileNotFoundError: It is not there.
        """
        offset = 0
        while True:
            part: bytes | None = self._head.ask(self._read(name, offset))
            if part is None:
                raise FileNotFoundError(f"the head node has no {name}")
            yield part
            offset += len(part)
            if len(part) < PART_BYTES:
                return


class HeadFolder(SavedOnHead):
    """The output folder of a job that trains; what arrives there is compared with its checksum."""

    def __init__(self, head: HeadFiles, job_id: str, attempt: int) -> None:
        """Nothing is asked yet.

        Args:
            head: The way there.
            job_id: Whose folder.
            attempt: Of the job; a later one takes the folder away from this one.
        """
        self._head, self._job = head, (job_id, attempt)
        self._list, self._read = ListOutput(*self._job), partial(ReadOutput, *self._job)

    def write(self, name: str, content: bytes) -> None:
        """See `JobFolder`."""
        self._send(io.BytesIO(content), name)

    def put(self, local: Path, name: str) -> None:
        """See `JobFolder`."""
        with local.open("rb") as file:
            self._send(file, name)

    def remove(self, names: Iterable[str]) -> None:
        """See `JobFolder`."""
        if wanted := tuple(names):
            self._head.ask(RemoveOutput(*self._job, wanted))

    def _send(self, file: BinaryIO, name: str) -> None:
        total, offset = hashlib.sha256(), 0
        while (part := file.read(PART_BYTES)) or not offset:
            self._head.ask(WriteOutput(*self._job, name, offset, part))
            total.update(part)
            offset += len(part)
            if not part:
                break
        self._head.ask(FinishOutput(*self._job, name, total.hexdigest()))
