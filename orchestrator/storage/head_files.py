"""What actors on nodes with other disks ask of this node's: files of the jobs that were given to them, no others."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_actor.contract.errors import InvalidJobError, JobNotFoundError, LorayError
from gpu_actor.contract.head_files import (
    FileEntry,
    FileRequest,
    FinishOutput,
    ListInput,
    ListOutput,
    ListSaved,
    MarkOutput,
    ReadInput,
    ReadOutput,
    ReadSaved,
    RemoveOutput,
    WriteOutput,
)
from gpu_actor.contract.messages import one_line
from gpu_actor.paths import file_names
from gpu_actor.paths.roots import outside
from gpu_actor.storage.checksums import checksum
from gpu_actor.storage.job_folder import StorageError
from orchestrator.cluster.cluster_config import ClusterConfig
from orchestrator.endpoint.references import reach, written
from orchestrator.jobs.owner import OPERATOR
from orchestrator.jobs.preflight import named_places
from orchestrator.jobs.states import JobState
from orchestrator.storage.arriving_output import ArrivingOutput, read_part
from orchestrator.store.records import JobRecord

if TYPE_CHECKING:
    from orchestrator.store.store import Store

_ADAPTER = (file_names.ADAPTER_CONFIG, file_names.ADAPTER_WEIGHTS, file_names.CHECKSUMS, file_names.PICKLED_ADAPTER)


class HeadFiles:
    """Answers the requests of one orchestrator's actors."""

    def __init__(self, store: Store, config: ClusterConfig) -> None:
        self._store, self._config = store, config

    async def answer(self, request: FileRequest | ListSaved | ReadSaved) -> Any:
        """Answer a request.

        Raises:
            StorageError: The disk does not do it, or the job has gone on to another attempt.
            LorayError: The job may not read or write there, or what it reads is gone.
        """
        try:
            if isinstance(request, FileRequest):
                return await asyncio.to_thread(self._answer, self._job(request), request)
            return await asyncio.to_thread(self._saved, request)
        except LorayError:
            raise
        except OSError as error:
            raise StorageError(f"the head node: {one_line(error)}") from None

    def _job(self, request: FileRequest) -> JobRecord:
        try:
            job = self._store.get(request.job_id)
        except JobNotFoundError:
            job = None
        if job is None or job.state is not JobState.RUNNING or job.attempt != request.attempt:
            raise StorageError("the head node: the job has left this actor")
        return job

    def _answer(self, job: JobRecord, request: FileRequest) -> Any:
        match request:
            case ListInput(path=path):
                return self._entries(job, path)
            case ReadInput(path=path, name=name, offset=offset):
                return read_part(self._input(job, path, name), offset)
        folder = Path(job.output_dir)
        if problem := outside(str(folder), written(job.owner, self._config)):
            raise InvalidJobError(f"output_dir: {problem}")
        output = ArrivingOutput(folder)
        match request:
            case MarkOutput():
                return output.mark()
            case ListOutput():
                return output.names()
            case ReadOutput(name=name, offset=offset):
                return output.read(name, offset)
            case WriteOutput(name=name, offset=offset, content=content):
                output.write(name, offset, content)
            case FinishOutput(name=name, sha256=sha256):
                output.finish(name, sha256)
            case RemoveOutput(names=names):
                output.remove(names)
        return None

    def _saved(self, request: ListSaved | ReadSaved) -> Any:
        if problem := outside(request.folder, reach(OPERATOR, self._config)):
            raise InvalidJobError(problem)
        output = ArrivingOutput(Path(request.folder))
        return output.names() if isinstance(request, ListSaved) else output.read(request.name, request.offset)

    def _entries(self, job: JobRecord, path: str) -> list[FileEntry]:
        """The files that a job reads at a path; of an output folder those of its adapter."""
        place = Path(path)
        if not place.is_dir():
            names = [""]
        elif (place / file_names.ADAPTER_CONFIG).is_file():
            names = [name for name in _ADAPTER if (place / name).is_file()]
        else:
            found = (file.relative_to(place) for file in place.rglob("*") if file.is_file())
            names = sorted(name.as_posix() for name in found if not any(part.startswith(".") for part in name.parts))
        return [_entry(name, self._input(job, path, name)) for name in names]

    def _input(self, job: JobRecord, path: str, name: str) -> Path:
        """A file that a job reads.

        Raises:
            InvalidJobError: It reads none there, or may not.
        """
        file = Path(path, name) if name else Path(path)
        if path not in named_places([job.spec]) or ".." in Path(name).parts or Path(name).is_absolute():
            raise InvalidJobError(f"{file} is no file of the job {job.name}")
        if problem := outside(str(file), reach(job.owner, self._config)):
            raise InvalidJobError(problem)
        if not file.is_file():
            raise InvalidJobError(f"{file} is not there any more; put it back, and `loray retry {job.name}`")
        return file


def _entry(name: str, file: Path) -> FileEntry:
    found = file.stat()
    return FileEntry(name, _digest((file, found.st_size, found.st_mtime_ns)))


@lru_cache(maxsize=10_000)
def _digest(version: tuple[Path, int, int]) -> str:
    """The SHA-256 of a file as it was with this size and time of its last change: many jobs read the same one."""
    return checksum(version[0])
