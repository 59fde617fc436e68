"""The weight files of a base model: which there are, whether they are whole, and their tensors one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from gpu_actor.contract.errors import BaseModelError
from gpu_actor.paths.locations import BaseFiles, pickles_in, safetensors_in

_WHOLE = "model.safetensors"
_WHOLE_PICKLE = "pytorch_model.bin"
PICKLES_REFUSED = (
    "has pickled weights only, which can run code when read; convert them to safetensors where you trust them, "
    "or let the operator set `allow_pickle: true` in the cluster file"
)


def check_safetensors(folder: Path) -> None:
    """Check that every safetensors file of a folder is whole: a readable header, and as many bytes as it names.

    Raises:
        BaseModelError: One is not; the message names it.
    """
    for path in safetensors_in(folder):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise BaseModelError(
                f"base_model: {path} is damaged or cut off ({error}); fetch or save the model again"
            ) from None


def tensors_of(files: BaseFiles, allow_pickle: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of every tensor of a base model, file by file.

    Args:
        files: A folder or hub id with safetensors, or with pickled weights if they are allowed.
        allow_pickle: Read pickled weights where there are no safetensors.

    Raises:
        BaseModelError: There are no weights, or they are damaged.
    """
    folder = local_folder(files, allow_pickle)
    shards = safetensors_shards(folder)
    if shards:
        for path in shards:
            yield from tensors_in(path)
        return
    pickles = pickles_in(folder)
    if not pickles:
        raise BaseModelError(f"base_model: {folder} has no weights (*.safetensors); fetch the model again")
    if not allow_pickle:
        raise BaseModelError(f"base_model: {folder} {PICKLES_REFUSED}")
    for path in _shards(folder, _WHOLE_PICKLE, pickles):
        yield from _unpickled(path).items()


def local_folder(files: BaseFiles, allow_pickle: bool = False) -> Path:
    """The folder of a base model on this machine, fetched from the hub if need be.

    Raises:
        BaseModelError: It cannot be fetched.
    """
    return files.folder or _download(files.place, allow_pickle)


def safetensors_shards(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights of a base model's folder; none where there are only others.

    Raises:
        BaseModelError: They are damaged, or one is missing.
    """
    check_safetensors(folder)
    return _shards(folder, _WHOLE, safetensors_in(folder))


def tensors_in(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of every tensor of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dictionary
            yield name, file.get_tensor(name)


def _shards(folder: Path, whole: str, files: list[Path]) -> list[Path]:
    """The files that the index names if there is one; else the file of the usual name; else all of them."""
    path = folder / f"{whole}.index.json"
    if not path.is_file():
        return [folder / whole] if folder / whole in files else files
    try:
        names = sorted({str(name) for name in json.loads(path.read_bytes())["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError(f"base_model: {path} is no index of weights ({error}); fetch the model again") from None
    for name in names:
        if Path(name).name != name:
            raise BaseModelError(f"base_model: {path} names {name!r}, which is not a file beside it; refused")
        if not (folder / name).is_file():
            raise BaseModelError(f"base_model: {folder} lacks {name}, which its index names; fetch the model again")
    return [folder / name for name in names]


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a stranger's pickle raises
        text = " ".join(str(error).split())[:200]
        raise BaseModelError(f"base_model: {path} is not a pickle of tensors alone ({text})") from None
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise BaseModelError(f"base_model: {path} is not a dictionary of tensors")
    return loaded


def _download(ref: str, allow_pickle: bool) -> Path:
    """The local copy of a hub id: its configuration, tokenizer and weights."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.safetensors"]
    try:
        folder = Path(snapshot_download(ref, allow_patterns=patterns))
        if allow_pickle and not safetensors_in(folder):
            folder = Path(snapshot_download(ref, allow_patterns=[*patterns, "*.bin"]))
    except Exception as error:
        raise BaseModelError(f"base_model: {ref}: cannot be fetched ({' '.join(str(error).split())[:200]})") from None
    return folder
