"""Where Loray keeps its own files, and where a base model's reference leads to."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from gpu_actor.contract.errors import BaseModelError
from gpu_actor.paths import file_names

_HUB_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"{_HUB_PART}(?:/{_HUB_PART})?|{_HUB_PART}/{_HUB_PART}/{_HUB_PART}\.gguf")
_GGUF = ".gguf"
_PICKLES = ("*.bin", "*.pt", "*.pth")


@dataclass(frozen=True)
class BaseFiles:
    """Where the files of a base model are.

    Attributes:
        place: A folder, or a hub id: what transformers calls `pretrained_model_name_or_path`.
        gguf_file: The name of the GGUF file there that holds the model; None for one with a config.json.
    """

    place: str
    gguf_file: str | None = None

    @property
    def folder(self) -> Path | None:
        """The place, if it is on this machine."""
        return Path(self.place) if Path(self.place).is_dir() else None


def loray_home() -> Path:
    """The folder of Loray's own files: `$LORAY_HOME`, else `~/.loray`. It need not exist."""
    return Path(os.environ.get("LORAY_HOME") or "~/.loray").expanduser().absolute()


def looks_like_path(ref: str) -> bool:
    """Whether a base model reference says by its first character that it is a folder."""
    return ref.startswith((".", "/", "~"))


def is_local_model(path: str) -> bool:
    """Whether a path leads to what can be a base model: a folder, or a .gguf file."""
    return os.path.isdir(path) or (path.endswith(_GGUF) and os.path.isfile(path))


def is_hub_id(ref: str) -> bool:
    """Whether a base model reference leads to the hub: `name`, `organisation/name` or `organisation/name/file.gguf`."""
    return bool(_HUB_ID.fullmatch(ref)) and ".." not in ref and "--" not in ref


def resolve_base_model(ref: str) -> str:
    """What `$LORAY_HOME/models` holds for a hub id if there is something, else the reference itself.

    Args:
        ref: A folder, a .gguf file, or a hub id such as `HuggingFaceTB/SmolLM2-135M-Instruct`.

    Raises:
        BaseModelError: The reference is a hub id that climbs out of the model store.
    """
    if looks_like_path(ref):
        return ref
    if ".." in ref.split("/"):
        raise BaseModelError(
            f"base model {ref!r} holds a '..'; allowed: a hub id (organisation/name), or a folder's path "
            "that starts with './', '../', '/' or '~'"
        )
    if not is_hub_id(ref):
        return ref
    stored = loray_home() / "models" / ref
    # The name of an organisation alone is a folder too, but no model.
    return str(stored) if stored.is_file() or _holds_model(stored) else ref


def find_base(ref: str) -> BaseFiles:
    """Where a base model is, and in which form: a folder or hub id, or one GGUF file.

    A folder is read as GGUF if it has a .gguf file and no safetensors.

    Args:
        ref: A folder, a hub id, a .gguf file, or the file of a hub id (`organisation/name/file.gguf`).

    Raises:
        BaseModelError: The file does not exist, or a folder holds several GGUF files; the message lists them.
    """
    place = resolve_base_model(ref)
    if place.endswith(_GGUF) and not Path(place).is_dir():
        head, _, name = place.rpartition("/")
        if not looks_like_path(ref) and place == ref and head and not Path(place).exists():
            return BaseFiles(head, name)
        if not Path(place).expanduser().is_file():
            raise BaseModelError(f"base_model: {ref}: there is no such file; give a .gguf file that exists")
        return BaseFiles(str(Path(place).expanduser().absolute().parent), name or place)
    folder = Path(place).expanduser()
    if not folder.is_dir():
        return BaseFiles(place)
    ggufs = sorted(path.name for path in folder.glob(f"*{_GGUF}"))
    if not ggufs or safetensors_in(folder):
        return BaseFiles(str(folder))
    if len(ggufs) > 1:
        raise BaseModelError(
            f"base_model: {ref}: the folder holds {len(ggufs)} GGUF files ({', '.join(ggufs)}); "
            f"name one of them, such as {folder / ggufs[0]}"
        )
    return BaseFiles(str(folder), ggufs[0])


def safetensors_in(folder: Path) -> list[Path]:
    """The safetensors files of a base model; an adapter's are none."""
    return sorted(path for path in folder.glob("*.safetensors") if path.name != file_names.ADAPTER_WEIGHTS)


def pickles_in(folder: Path) -> list[Path]:
    """The files of a folder that look like pickled weights."""
    return sorted(path for pattern in _PICKLES for path in folder.glob(pattern))


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or any(folder.glob(f"*{_GGUF}"))
