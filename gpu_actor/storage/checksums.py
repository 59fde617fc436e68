"""Checksums of files that belong together, kept beside them in `checksums.json`.

A flipped bit in a safetensors file is another number and nothing else: only by its checksum does a reader find out that
a file is no longer what was written. Free of torch, because the orchestrator checks start adapters.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import BinaryIO

from gpu_actor.contract.errors import DamagedFileError
from gpu_actor.paths import file_names

_LARGEST_TEXT = 64 << 20  # bytes; configurations and states have some thousand


def check_file(path: Path) -> None:
    """Check that a file is what was written, where there are checksums beside it; PEFT writes none.

    Raises:
        DamagedFileError: It is not, or it cannot be read.
    """
    wanted = _checksums(path.parent).get(path.name)
    if wanted is None:
        return
    try:
        found = checksum(path)
    except OSError as error:
        raise DamagedFileError(f"{path}: damaged: it cannot be read ({error.strerror})") from None
    if found != wanted:
        raise DamagedFileError(
            f"{path}: damaged: it is no longer the file that was written, by the SHA-256 in {file_names.CHECKSUMS}; "
            f"fetch it again, or remove {file_names.CHECKSUMS} if you changed it on purpose"
        )


def check_files(folder: Path) -> None:
    """Check all files of a folder that have checksums there.

    Raises:
        DamagedFileError: One of them is not what was written.
    """
    for name in _checksums(folder):
        check_file(folder / name)


def checksum(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with _open_plain(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read_plain(path: Path) -> str:
    """The text of a small file, which nobody has put a device, a pipe or something endless in the place of.

    Raises:
        OSError: Somebody has, or it cannot be read.
        ValueError: It is no text.
    """
    with _open_plain(path) as file:
        content = file.read(_LARGEST_TEXT + 1)
    if len(content) > _LARGEST_TEXT:
        raise OSError(errno.EFBIG, f"it is larger than {_LARGEST_TEXT >> 20} MiB", str(path))
    return content.decode("utf-8")


def _open_plain(path: Path) -> BinaryIO:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would be waited for
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return os.fdopen(descriptor, "rb")


def _checksums(folder: Path) -> dict[str, str]:
    """By file name; none where there is no list of them.

    Raises:
        DamagedFileError: The list itself is damaged.
    """
    path = folder / file_names.CHECKSUMS
    try:
        found = json.loads(read_plain(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path}: damaged ({error}); fetch the folder again, or remove this file") from None
    names = isinstance(found, dict) and all(Path(name).name == name for name in found)
    if not names:
        raise DamagedFileError(f"{path}: damaged (no list of checksums); fetch the folder again, or remove this file")
    return {name: str(value) for name, value in found.items()}
