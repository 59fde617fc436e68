"""Weights written to safetensors files of a limited size, one file in memory at a time."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from gpu_actor.adapters.whole_files import Tensors, draft_tensors

SHARD_BYTES = 2 * 2**30
"""Most bytes of one file; a larger tensor has one of its own."""
_WHOLE = "model.safetensors"


class ShardWriter:
    """Takes tensors one by one; `close` names the files and writes their index."""

    def __init__(self, folder: Path, most_bytes: int = SHARD_BYTES) -> None:
        """Nothing is written yet.

        Args:
            folder: Where to; it is there and has no weights.
            most_bytes: Most bytes of one file.
        """
        self._folder, self._most_bytes = folder, most_bytes
        self._waiting: Tensors = {}
        self._waiting_bytes = 0
        self._files: list[list[str]] = []  # the tensors in each file
        self.written_bytes = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take a tensor. It is kept until its file is full.

        Raises:
            OSError: A file cannot be written, as on a full disk.
        """
        if self._waiting and self._waiting_bytes + tensor.nbytes > self._most_bytes:
            self._write()
        self._waiting[name] = tensor
        self._waiting_bytes += tensor.nbytes

    def close(self) -> None:
        """Write what is left, and give the files the names that transformers looks for.

        Raises:
            OSError: A file cannot be written.
        """
        self._write()
        if len(self._files) == 1:
            self._draft(0).rename(self._folder / _WHOLE)
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._files):
            file = f"model-{number + 1:05d}-of-{len(self._files):05d}.safetensors"
            self._draft(number).rename(self._folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self.written_bytes}, "weight_map": weight_map}
        (self._folder / f"{_WHOLE}.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")

    def _write(self) -> None:
        draft_tensors(self._draft(len(self._files)), self._waiting)
        self._files.append(list(self._waiting))
        self.written_bytes += self._waiting_bytes
        self._waiting, self._waiting_bytes = {}, 0

    def _draft(self, number: int) -> Path:
        return self._folder / f"model-{number + 1:05d}.draft"
