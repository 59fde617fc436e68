"""What jobs read from the head node, brought to this one."""

from __future__ import annotations

from pathlib import Path

from gpu_actor.contract.head_files import PART_BYTES, FileEntry, HeadFiles, ListInput, ReadInput
from gpu_actor.contract.messages import one_line
from gpu_actor.storage.content_cache import cached, holds
from gpu_actor.storage.job_folder import StorageError


def fetched(head: HeadFiles, job_id: str, attempt: int, path: str) -> str:
    """Where this node has what lies at a path of the head node: there too, if the content is the same, or in the cache.

    Args:
        head: The way there.
        job_id: The job that names the path.
        attempt: Of the job.
        path: A file or a folder.

    Raises:
        StorageError: It cannot be fetched now, or there is no room for it here.
        LorayError: The head node has no such file, or does not give it.
    """

    def fetch(name: str, file: Path) -> None:
        offset = 0
        with file.open("wb") as out:
            while part := head.ask(ReadInput(job_id, attempt, path, name, offset)):
                out.write(part)
                offset += len(part)
                if len(part) < PART_BYTES:
                    return

    entries: list[FileEntry] = head.ask(ListInput(job_id, attempt, path))
    try:
        if holds(Path(path), entries):
            return path
        return str(cached(entries, Path(path).name, fetch))
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{path} cannot be fetched from the head node: {one_line(error)}") from error
