"""Files and folders of Loray's own that only their owner can read, whatever the umask."""

from __future__ import annotations

import os
from pathlib import Path

_OWNER_ONLY = 0o700


def private_folder(folder: Path) -> None:
    """Make a folder that nobody else can enter; one that is there already stays as its owner made it.

    Raises:
        OSError: It cannot be made.
    """
    if folder.is_dir():
        return
    folder.mkdir(parents=True, mode=_OWNER_ONLY, exist_ok=True)
    folder.chmod(_OWNER_ONLY)


def private_file(path: Path) -> None:
    """Make an empty file that nobody else can read, unless it is there; close it to others if it is.

    Raises:
        OSError: It cannot be made, or is a link, or belongs to somebody else.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
