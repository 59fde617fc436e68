"""A folder of a bucket, by fsspec. Options and credentials come from the environment alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from gpu_actor.contract.messages import one_line
from gpu_actor.paths.urls import url_problem
from gpu_actor.storage.job_folder import StorageError


class RemoteFolder:
    """One folder; see `JobFolder`."""

    def __init__(self, url: str) -> None:
        """Nothing is asked of the storage yet.

        Args:
            url: As `url_problem` allows it.
        """
        self.url = url

    @cached_property
    def _files(self) -> Any:
        if problem := url_problem(self.url):
            raise StorageError(problem)
        import fsspec  # slow to import, and most jobs have no use for it

        return fsspec.filesystem(self.url.partition("://")[0], use_listings_cache=False)

    def _path(self, name: str) -> str:
        return f"{self.url.partition('://')[2]}/{name}"

    def names(self) -> set[str]:
        """The names of all files.

        Raises:
            StorageError: They cannot be listed.
        """
        with self._asked("listed"):
            start = self._path("")
            found = self._files.find(start, refresh=True)
            return {path[len(start) :] for path in found if path.startswith(start) and path != start}

    def read(self, name: str) -> bytes | None:
        """The content of a file; None: there is none.

        Raises:
            StorageError: It cannot be read.
        """
        with self._asked("read"):
            try:
                content: bytes = self._files.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all.

        Raises:
            StorageError: It cannot be written.
        """
        with self._asked("written"):
            self._files.pipe_file(self._path(name), content)

    def put(self, local: Path, name: str) -> None:
        """Upload a file, whole or not at all.

        Raises:
            StorageError: It cannot be written.
        """
        with self._asked("written"):
            self._files.put_file(str(local), self._path(name))

    def get(self, name: str, local: Path) -> None:
        """Download a file.

        Raises:
            StorageError: It cannot be read, or not be written here.
        """
        with self._asked("read"):
            self._files.get_file(self._path(name), str(local))

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; those that are not there are none to remove.

        Raises:
            StorageError: They cannot be removed.
        """
        for name in names:
            with self._asked("removed"), contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._path(name))

    @contextlib.contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        """Whatever goes wrong, each library with exceptions of its own, is a `StorageError`."""
        try:
            yield
        except StorageError:
            raise
        except Exception as error:
            reason = one_line(error) or type(error).__name__
            raise StorageError(f"{self.url} cannot be {what}: {reason}") from error
