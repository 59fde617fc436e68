"""Where Loray keeps its own files, and where a base model's reference leads to."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gpu_actor.errors import BaseModelError

_HUB_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"{_HUB_PART}(?:/{_HUB_PART})?")


def loray_home() -> Path:
    """The folder of Loray's own files: `$LORAY_HOME`, else `~/.loray`. It need not exist."""
    return Path(os.environ.get("LORAY_HOME") or "~/.loray").expanduser().absolute()


def looks_like_path(ref: str) -> bool:
    """Whether a base model reference says by its first character that it is a folder."""
    return ref.startswith((".", "/", "~"))


def is_hub_id(ref: str) -> bool:
    """Whether a base model reference has the form of a hub id: `name` or `organisation/name`."""
    return bool(_HUB_ID.fullmatch(ref)) and ".." not in ref and "--" not in ref


def resolve_base_model(ref: str) -> str:
    """The folder of `$LORAY_HOME/models` that holds a hub id if there is one, else the reference itself.

    Args:
        ref: A folder, or a hub id such as `HuggingFaceTB/SmolLM2-135M-Instruct`.

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
    folder = loray_home() / "models" / ref
    # The name of an organisation alone is a folder too, but no model.
    return str(folder) if (folder / "config.json").is_file() else ref
