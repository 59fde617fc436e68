"""Files that appear whole or not at all: written beside their place, flushed, and renamed."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gpu_actor.contract.errors import DamagedFileError
from gpu_actor.paths import file_names
from gpu_actor.storage.checksums import checksum

Tensors = dict[str, torch.Tensor]


def read_tensors(path: Path) -> Tensors:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        DamagedFileError: It cannot be read.
    """
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise DamagedFileError(f"{path}: not a readable safetensors file ({error}); copy or export it again") from None


def write_together(folder: Path, tensors: Mapping[str, Tensors], objects: Mapping[str, Any]) -> None:
    """Write the files of one adapter or checkpoint: all of them are on the disk before the first one appears.

    Their checksums come last, in `checksums.json`.

    Args:
        folder: Where to; it is there.
        tensors: Safetensors files by name.
        objects: JSON files by name.

    Raises:
        OSError: They cannot be written, as on a full disk; nothing has changed then.
    """
    with _drafts() as drafts:
        for name, content in tensors.items():
            draft_tensors(drafts.of(folder / name), content)
        for name, value in objects.items():
            drafts.of(folder / name).write_bytes(_json(value))
        checksums = {path.name: checksum(draft) for path, draft in drafts.items()}
        drafts.of(folder / file_names.CHECKSUMS).write_bytes(_json(checksums))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file.

    Raises:
        OSError: It cannot be written; what was there stands.
    """
    with _drafts() as drafts:
        drafts.of(path).write_bytes(content)


def draft_tensors(path: Path, tensors: Tensors) -> None:
    """Write a safetensors file to where nobody looks yet.

    Raises:
        OSError: It cannot be written, as on a full disk.
    """
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({error})") from None


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Drafts(dict[Path, Path]):
    """Where each file is written before it gets its place."""

    def of(self, path: Path) -> Path:
        """Where to write what belongs at `path`: a name that nobody can have put a link at."""
        self[path] = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        return self[path]


@contextlib.contextmanager
def _drafts() -> Iterator[_Drafts]:
    """Files to be written; each gets its place when all are on the disk, and none if one of them fails."""
    drafts = _Drafts()
    try:
        yield drafts
        for draft in drafts.values():
            with draft.open("rb") as file:
                os.fsync(file.fileno())
    except Exception:
        for draft in drafts.values():
            with contextlib.suppress(OSError):  # a full disk should not stay full of half a file
                draft.unlink(missing_ok=True)
        raise
    for path, draft in drafts.items():
        os.replace(draft, path)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
