"""The lock on a storage folder: two orchestrators must never drive one job table."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import TextIO

from gpu_actor.paths.private_files import private_folder
from orchestrator.store.errors import StoreError

LOCK_FILE = "controller.lock"
_PATIENCE_S = 5.0  # for a predecessor that is just dying


def open_file(storage: Path, name: str) -> TextIO:
    """A file of the storage folder, to be written to; what is missing of both is made.

    Raises:
        StoreError: It cannot be written.
    """
    try:
        private_folder(storage)
        return (storage / name).open("a+", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"the storage {storage} cannot be used: {error.strerror}; give another `storage`") from None


def try_lock(file: TextIO) -> bool:
    """Lock a file for this process until it is closed; False where another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def hold(storage: Path) -> TextIO:
    """Lock a storage folder for this process, for as long as it lives or the file stays open.

    Raises:
        StoreError: Another orchestrator holds it, or it cannot be written.
    """
    lock = open_file(storage, LOCK_FILE)
    deadline = time.monotonic() + _PATIENCE_S
    while not try_lock(lock):
        if time.monotonic() > deadline:
            lock.seek(0)
            raise StoreError(
                f"another orchestrator (process {lock.read().strip() or 'unknown'}) uses the storage {storage}; "
                f"stop it, or give another `storage` in the cluster file"
            )
        time.sleep(0.1)
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock
