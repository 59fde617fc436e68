"""A job's local folder and its image in a storage: fetched before the job begins, then kept up to date by a thread.

The training writes to the local folder as ever and waits for no network. What is brought to the storage is whole once
its `checksums.json` is there, which comes last; what has none is no checkpoint and no adapter.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from gpu_actor.contract.messages import one_line
from gpu_actor.paths import file_names
from gpu_actor.storage.job_folder import JobFolder
from gpu_actor.storage.work_folders import WorkFolder

logger = logging.getLogger(__name__)

_AGAIN_SECONDS = 5.0  # between two tries
_ROWS_SECONDS = 10.0  # between two uploads of metrics that no checkpoint calls for
_ROWS_BYTES = 2**20  # of metrics, by each of which that becomes longer: they are uploaded whole
_SLOW_SECONDS = 10.0  # after which a person hears that an upload is under way


class Mirror:
    """The image of one job's files.

    Attributes:
        folder: The local folder, which ends with the mirror.
        failure: Why the latest try to bring something there failed; empty if it did not.
        saved_step: The newest optimizer step whose checkpoint is whole in the storage; 0 without any.
    """

    def __init__(self, remote: JobFolder, name: str, keep: int) -> None:
        """Make the local folder; the storage is not asked yet.

        Args:
            remote: The folder in the storage.
            name: Of the job.
            keep: Checkpoints that stay in the storage.

        Raises:
            OSError: The local folder cannot be made.
        """
        self._remote, self._keep = remote, keep
        self._work = WorkFolder(name)
        self.folder = self._work.path
        self.failure = ""
        self.saved_step = 0
        self._there: dict[str, str] = {}  # local folder -> its manifest, of what is whole in the storage
        self._fetched: set[str] = set()
        self._stale: set[str] = set()  # files of the storage that nobody may go on from
        self._rows = b""  # of metrics, as the storage has them
        self._wake, self._closing = threading.Event(), threading.Event()
        self._given_up = False
        self._asked = self._done = 0
        self._asked_at = 0.0
        self._thread = threading.Thread(target=self._run, name="loray-mirror", daemon=True)

    # -- before the job begins -----------------------------------------------------------------------------------

    def fetch(self) -> None:
        """Bring what a job goes on from: its metrics, its checkpoints and its best adapters, as far as they are whole.

        Raises:
            StorageError: The storage does not answer; nothing was begun.
        """
        names = self._remote.names()
        folders = {name.partition("/")[0] for name in names if name.count("/") == 1}
        for folder in sorted(folder for folder in folders if _is_saved(folder)):
            files = [name for name in names if name.startswith(f"{folder}/")]
            if f"{folder}/{file_names.CHECKSUMS}" not in names:
                self._stale.update(files)
                continue
            (self.folder / folder).mkdir(exist_ok=True)
            for name in files:
                self._remote.get(name, self.folder / name)
            self._fetched.update(files)
        if file_names.METRICS in names:
            self._remote.get(file_names.METRICS, self.folder / file_names.METRICS)

    def begin(self, step: int) -> None:
        """The job begins, or goes on from the checkpoint of a step; damaged ones were removed here by now."""
        self.saved_step = step
        for name in self._fetched:
            folder = name.partition("/")[0]
            if not (self.folder / folder).is_dir():
                self._stale.add(name)
            elif name.endswith(f"/{file_names.CHECKSUMS}"):
                self._there[folder] = (self.folder / name).read_text("utf-8")
        if not self._thread.is_alive():
            self._thread.start()

    # -- while it trains: these return at once -------------------------------------------------------------------

    def changed(self) -> None:
        """A checkpoint or an adapter was written here, and is to be brought to the storage."""
        if self.settled:
            self._asked_at = time.monotonic()
        self._asked += 1
        self._wake.set()

    @property
    def settled(self) -> bool:
        """Whether all that was written when `changed` was last called is whole in the storage."""
        return self._done >= self._asked

    @property
    def is_slow(self) -> bool:
        """Whether something has been on its way for long."""
        return not self.settled and time.monotonic() - self._asked_at > _SLOW_SECONDS

    def discard(self) -> None:
        """The job was given up: once it closes, remove what is in the storage to go on from."""
        self._given_up = True

    def close(self) -> None:
        """Bring nothing more, and remove the local folder."""
        self._closing.set()
        self._wake.set()
        if self._thread.ident is None:  # it never began
            self._work.remove()

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(_ROWS_SECONDS * (1 + len(self._rows) / _ROWS_BYTES))
            self._wake.clear()
            asked = self._asked
            try:
                if asked > self._done:
                    self._bring_saved()
                self._bring_rows()
                if asked > self._done:
                    self._bring_adapter()
            except OSError as error:
                if not self.failure:
                    logger.warning("%s", one_line(error))
                self.failure = one_line(error)
                self._closing.wait(_AGAIN_SECONDS)
                self._wake.set()
            else:
                self.failure, self._done = "", asked
        self._work.remove()
        if self._given_up:
            with contextlib.suppress(OSError):  # the orchestrator removes them as well
                remove_checkpoints(self._remote)

    def _bring_saved(self) -> None:
        """Bring the newest checkpoint, and before it the best adapters that it may name."""
        newest = max(_steps(self.folder), default=None)
        for folder in sorted(path.name for path in self.folder.glob(f"{file_names.BEST}*")):
            self._bring_folder(folder)
        if newest is not None:
            self._bring_rows()  # those until this step are cut off by nobody who goes on from it
            if self._bring_folder(file_names.checkpoint_folder(newest)):
                self.saved_step = newest
                self._clear_away(newest)

    def _bring_folder(self, folder: str) -> bool:
        """Bring a folder with a manifest; returns whether it is in the storage now, whole."""
        try:
            manifest = (self.folder / folder / file_names.CHECKSUMS).read_text("utf-8")
            if self._there.get(folder) == manifest:
                return True
            if folder in self._there:  # others' bits: whoever looks meanwhile finds no checkpoint
                self._remote.remove([f"{folder}/{file_names.CHECKSUMS}"])
                del self._there[folder]
            for name in json.loads(manifest):
                if self._closing.is_set():
                    return False
                self._remote.put(self.folder / folder / name, f"{folder}/{name}")
            self._remote.write(f"{folder}/{file_names.CHECKSUMS}", manifest.encode())
        except OSError:
            if not (self.folder / folder).is_dir():
                return False  # a newer one has taken its place
            raise
        self._there[folder] = manifest
        return True

    def _bring_rows(self) -> None:
        path = self.folder / file_names.METRICS
        rows = path.read_bytes() if path.is_file() else b""
        rows = rows[: rows.rfind(b"\n") + 1]
        if rows != self._rows:
            self._remote.write(file_names.METRICS, rows)
            self._rows = rows

    def _bring_adapter(self) -> None:
        """Bring the finished adapter, if it is there: who finds its configuration finds its weights."""
        path = self.folder / file_names.CHECKSUMS
        if not path.is_file():
            return
        manifest = path.read_text("utf-8")
        if self._there.get("") != manifest:
            for name in (file_names.ADAPTER_WEIGHTS, file_names.ADAPTER_CONFIG):
                self._remote.put(self.folder / name, name)
            self._remote.write(file_names.CHECKSUMS, manifest.encode())
            self._there[""] = manifest

    def _clear_away(self, newest: int) -> None:
        """Remove what a newer checkpoint has replaced, manifests first; newer ones belong to a newer attempt."""
        names = self._remote.names()
        whole = set(whole_steps(names))
        kept = sorted(step for step in whole if step <= newest)[-self._keep :]
        older = {step for step in map(_step, names) if step is not None and step <= newest} - set(kept)
        gone = {file_names.checkpoint_folder(step) for step in older}
        gone |= {folder for folder in self._there if _is_best(folder) and not (self.folder / folder).is_dir()}
        dropped = [name for name in names if name.partition("/")[0] in gone]
        stale = [name for name in self._stale & names if name.partition("/")[0] not in self._there]
        self._remote.remove(sorted({*dropped, *stale}, key=_manifests_first))
        self._stale.clear()
        self._there = {folder: manifest for folder, manifest in self._there.items() if folder not in gone}


def whole_steps(names: Iterable[str]) -> list[int]:
    """The optimizer steps whose checkpoints are whole, by the names of all files."""
    found = (_step(name) for name in names if name.endswith(f"/{file_names.CHECKSUMS}"))
    return sorted(step for step in found if step is not None)


def remove_checkpoints(remote: JobFolder) -> None:
    """Remove every checkpoint from a storage, whole or not, manifests first, and the best adapters.

    Raises:
        StorageError: They cannot be removed.
    """
    saved = [name for name in remote.names() if _is_saved(name.partition("/")[0])]
    remote.remove(sorted(saved, key=_manifests_first))


def _manifests_first(name: str) -> bool:
    return not name.endswith(file_names.CHECKSUMS)


def _step(name: str) -> int | None:
    return file_names.checkpoint_step(name.partition("/")[0])


def _is_best(folder: str) -> bool:
    return folder.startswith(file_names.BEST)


def _is_saved(folder: str) -> bool:
    return _is_best(folder) or file_names.checkpoint_step(folder) is not None


def _steps(folder: Path) -> list[int]:
    found = (file_names.checkpoint_step(path.name) for path in folder.glob(file_names.CHECKPOINTS))
    return [step for step in found if step is not None]
