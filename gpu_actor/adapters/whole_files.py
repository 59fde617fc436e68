"""Files that appear whole or not at all: written beside their place, flushed, and renamed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gpu_actor.contract.errors import AdapterError


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        AdapterError: It cannot be read.
    """
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path}: not a readable safetensors file ({error}); copy or export it again") from None


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: It cannot be written, as on a full disk.
    """
    draft = _draft(path)
    try:
        save_file(tensors, draft, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({error})") from None
    _settle(draft, path)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object for people to read."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file."""
    draft = _draft(path)
    draft.write_bytes(content)
    _settle(draft, path)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _settle(draft: Path, path: Path) -> None:
    """Flush a draft to the disk and give it its final name."""
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(draft, path)
