"""The file that says where the door is and has the operator's token: for this user alone, whatever the umask."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER, NAME = "door", "door.json"


@dataclass(frozen=True)
class DoorFile:
    """What the file says.

    Attributes:
        url: Of the door, as this machine reaches it.
        token: The operator's.
        pid: The orchestrator's process.
    """

    url: str
    token: str
    pid: int


def door_path(storage: Path) -> Path:
    """Where the file is."""
    return storage / FOLDER / NAME


def write_door_file(storage: Path, door: DoorFile) -> None:
    """Write the file, whole or not at all, with mode 0600 in a folder of mode 0700.

    Raises:
        OSError: It cannot be written.
    """
    path = door_path(storage)
    path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    path.parent.chmod(0o700)  # an older folder, or a umask that takes even the owner's bits
    draft = path.with_name(f".{NAME}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        json.dump(asdict(door), file)
    draft.replace(path)


def read_door_file(storage: Path) -> DoorFile | None:
    """What the file says; None where there is none, or where others could have written or read it."""
    path = door_path(storage)
    try:
        with path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
                return None
            fields = json.load(file)
        door = DoorFile(**fields)
    except (OSError, ValueError, TypeError):
        return None
    ours = isinstance(door.url, str) and isinstance(door.token, str) and isinstance(door.pid, int)
    return door if ours else None


def remove_door_file(storage: Path) -> None:
    """Take it back."""
    with contextlib.suppress(OSError):
        door_path(storage).unlink()
