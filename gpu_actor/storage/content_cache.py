"""Files that lie elsewhere, brought to this node once for each content: below `$LORAY_HOME/cache`."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gpu_actor.contract.head_files import FileEntry
from gpu_actor.paths.locations import loray_home
from gpu_actor.paths.private_files import private_folder
from gpu_actor.storage.checksums import checksum
from gpu_actor.storage.job_folder import StorageError

_LOCK = ".lock"
_KEEP_SECONDS = 7 * 24 * 3600.0  # that a content stays which nobody has used since


def cached(entries: Sequence[FileEntry], name: str, fetch: Callable[[str, Path], None]) -> Path:
    """A file or folder of the cache with this content, fetched if it is not there whole.

    Args:
        entries: Its files; of a lone file one with an empty name.
        name: What it is called there.
        fetch: Writes the file of a name to a path.

    Raises:
        StorageError: What was fetched is not the content.
        OSError: It cannot be fetched, or there is no room for it.
    """
    cache = loray_home() / "cache"
    private_folder(cache)
    _forget_unused(cache)
    home = cache / _digest(entries)
    target = home / name
    home.mkdir(exist_ok=True)
    os.utime(home)
    with (home / _LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes that want it, one fetches it
        if not holds(target, entries):
            _remove(target)  # a bit has flipped since
            with tempfile.TemporaryDirectory(dir=home, prefix=".draft-") as draft:
                content = Path(draft, "content")
                for entry in entries:
                    file = content / entry.name if entry.name else content
                    file.parent.mkdir(parents=True, exist_ok=True)
                    fetch(entry.name, file)
                    if checksum(file) != entry.sha256:
                        raise StorageError(
                            f"{Path(name, entry.name)} is not what its SHA-256 says, or has just changed"
                        )
                content.rename(target)
    return target


def holds(place: Path, entries: Sequence[FileEntry]) -> bool:
    """Whether a file, or the files of a folder, have this content."""
    try:
        return all(
            (file := place / entry.name if entry.name else place).is_file() and checksum(file) == entry.sha256
            for entry in entries
        )
    except OSError:
        return False


def _digest(entries: Sequence[FileEntry]) -> str:
    whole = "".join(f"{entry.name}\0{entry.sha256}\n" for entry in entries)
    return hashlib.sha256(whole.encode()).hexdigest()


def _forget_unused(cache: Path) -> None:
    for home in cache.iterdir():
        with contextlib.suppress(OSError):  # another process does the same
            if time.time() - home.stat().st_mtime > _KEEP_SECONDS:
                shutil.rmtree(home, ignore_errors=True)


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
