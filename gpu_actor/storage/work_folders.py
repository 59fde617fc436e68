"""Folders of this machine in which actors write what then goes to a storage; each ends with whoever made it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from gpu_actor.paths.locations import loray_home
from gpu_actor.paths.private_files import private_folder

_LOCK = ".lock"


class WorkFolder:
    """A new folder below `$LORAY_HOME/work`.

    Attributes:
        path: Where it is.
    """

    def __init__(self, name: str) -> None:
        """Make it, and remove those whose processes have died.

        Args:
            name: Begins the folder's name, for people who look.

        Raises:
            OSError: It cannot be made.
        """
        above = loray_home() / "work"
        private_folder(above)
        for left in above.iterdir():
            _remove_if_left(left)
        self._whole = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=above))
        self._lock = os.open(self._whole / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # dies with this process
        self.path = self._whole / "files"
        self.path.mkdir()

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self._whole, ignore_errors=True)
        os.close(self._lock)


def _remove_if_left(folder: Path) -> None:
    """Remove a folder that no living process holds."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except OSError:
        return  # it is just being made, or removed
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return
    finally:
        os.close(lock)
