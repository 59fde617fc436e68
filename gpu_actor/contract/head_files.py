"""What an actor asks of the head node's files, where its own node has others: plain values that travel through Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

PART_BYTES = 4 * 2**20
"""Most bytes of a file in one request or answer: no file is ever in memory whole."""


@dataclass(frozen=True)
class FileEntry:
    """A file of a job.

    Attributes:
        name: Relative to the folder that the job names; empty where the job names the file itself.
        sha256: Of its content, in hexadecimal digits.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class FileRequest:
    """A request of a job that trains: who asks. An attempt that is no longer that of the job gets no answer."""

    job_id: str
    attempt: int


@dataclass(frozen=True)
class ListInput(FileRequest):
    """Which files lie at a path that the job reads: a list of `FileEntry`."""

    path: str


@dataclass(frozen=True)
class ReadInput(FileRequest):
    """The next bytes of such a file."""

    path: str
    name: str
    offset: int


@dataclass(frozen=True)
class MarkOutput(FileRequest):
    """Put a file of a new name into the job's output folder; its path. Who sees it there shares the folder."""


@dataclass(frozen=True)
class ListOutput(FileRequest):
    """The names of the files in the job's output folder."""


@dataclass(frozen=True)
class ReadOutput(FileRequest):
    """The next bytes of one of them; None: it is not there."""

    name: str
    offset: int


@dataclass(frozen=True)
class WriteOutput(FileRequest):
    """Put bytes into the draft of a file; at the offset 0 it begins anew."""

    name: str
    offset: int
    content: bytes


@dataclass(frozen=True)
class FinishOutput(FileRequest):
    """A draft is whole. It gets its place, that of a checkpoint with the checkpoint's `checksums.json`."""

    name: str
    sha256: str


@dataclass(frozen=True)
class RemoveOutput(FileRequest):
    """Remove files, of a checkpoint all of them."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class ListSaved:
    """The names of the files in the output folder of any job, for an answer of its adapter."""

    folder: str


@dataclass(frozen=True)
class ReadSaved:
    """The next bytes of one of them; None: it is not there."""

    folder: str
    name: str
    offset: int


class HeadFiles(Protocol):
    """A way to the files of the head node."""

    @property
    def is_here(self) -> bool:
        """Whether this process is on the head node."""

    def ask(self, request: FileRequest | ListSaved | ReadSaved) -> Any:
        """What the head node answers.

        Raises:
            StorageError: It cannot be reached, or cannot read or write there: try again later.
            LorayError: It refuses.
        """
