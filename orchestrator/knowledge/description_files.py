"""What is known of base models from earlier runs, in files below `$LORAY_HOME/descriptions`.

To describe a base model is to import torch and transformers and to build the model on fake tensors: seconds that every
first job of an orchestrator would wait for. The answer follows from the model's name and configuration and from code,
so it is filed under a digest of these; when one of them changes, nobody finds the old answer any more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from functools import cache
from importlib import metadata
from pathlib import Path

import gpu_actor
from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.errors import LorayError
from gpu_actor.model.describe import describe_base
from gpu_actor.paths.locations import find_base, loray_home

_LARGEST = 64 << 20  # bytes of configuration; real ones have some thousand


def recall(ref: str, trust_remote_code: bool = False) -> BaseDescription | None:
    """The description of a base model that an earlier run has filed; None if there is none that still holds.

    Args:
        ref: Folder, .gguf file or hub id. One that is not on this machine is never found.
        trust_remote_code: Whether Python code that comes with the model describes it; then it is never found.
    """
    path = description_file(ref, trust_remote_code)
    if path is None:
        return None
    try:
        checksum, _, text = path.read_text(encoding="utf-8").partition("\n")
        return BaseDescription.from_dict(json.loads(text)) if checksum == _checksum(text) else None
    except (OSError, ValueError, TypeError, KeyError):  # not there, or damaged: it is made anew
        return None


def recall_or_describe(ref: str, trust_remote_code: bool = False) -> BaseDescription:
    """The description of a base model; one that no earlier run has filed is made in this process, and is not filed.

    Args:
        ref: Folder, .gguf file or hub id.
        trust_remote_code: Whether Python code that comes with the model may run.

    Raises:
        BaseModelError: It cannot be described; the message says why.
    """
    return recall(ref, trust_remote_code) or describe_base(ref, trust_remote_code)


def remember(description: BaseDescription, trust_remote_code: bool = False) -> None:
    """File a description for later runs, if `recall` may find it; a full or closed disk is no error.

    One without counted activations is not filed: what kept them from being counted may be gone next time.
    """
    path = description_file(description.ref, trust_remote_code)
    if path is None or description.activations is None:
        return
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}")  # others may read and write it at this moment
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            text = json.dumps(description.to_dict())
            partial.write_text(f"{_checksum(text)}\n{text}", encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def description_file(ref: str, trust_remote_code: bool) -> Path | None:
    """The file of a base model's description; None for a model that may change without being seen to.

    Whenever the model changes this is another file.
    """
    try:
        files = find_base(ref)
        if files.folder is None:
            return None
        if files.gguf_file is None:
            paths = [path for path in sorted(files.folder.glob("config*.json")) if path.is_file()]
            if sum(path.stat().st_size for path in paths) > _LARGEST:
                return None
            configuration = b"".join(path.read_bytes() for path in paths)
            if trust_remote_code and b'"auto_map"' in configuration:
                return None
        else:  # its configuration is in it, but too far to read for this
            stat = (files.folder / files.gguf_file).stat()
            configuration = f"{files.gguf_file} {stat.st_size} {stat.st_mtime_ns}".encode()
    except (OSError, LorayError):
        return None
    # the name as well: of some ChatGLM checkpoints only that says which generation they are
    digest = hashlib.sha256(b"\0".join((os.fsencode(ref), configuration, _code_digest())))
    return loray_home() / "descriptions" / f"{digest.hexdigest()}.json"


def _checksum(text: str) -> str:
    """Without it a flipped bit in a number would be another size of the model, and nothing else."""
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _code_digest() -> bytes:
    """A digest of the code that describes: the engine's own files, and the versions of what they build on."""
    digest = hashlib.sha256()
    for source in sorted(Path(os.path.dirname(gpu_actor.__file__)).rglob("*.py")):
        digest.update(source.read_bytes())
    for package in ("torch", "transformers", "gguf", "accelerate"):  # without the last two no GGUF file is read
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            version = "absent"
        digest.update(f"{package} {version}\n".encode())
    return digest.digest()
