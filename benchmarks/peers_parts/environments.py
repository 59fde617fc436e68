"""An environment of its own for each peer: made on first use, and again when its packages change.

All have the torch that `constraints.txt` pins; PEFT and TRL have the rest of it as well, m-LoRA what it asks for.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_CONSTRAINTS = _HERE.parents[1] / "constraints.txt"


class EnvironmentFailed(RuntimeError):
    """A peer's environment could not be made; the message has the command and what it said."""


@dataclass(frozen=True)
class Environment:
    """The packages of a peer.

    Attributes:
        packages: As pip takes them.
        pinned: Whether all of `constraints.txt` holds, and not its torch alone.
        without_theirs: Packages that are installed without what they ask for, because it would take another torch.
        patch: A file beside this one, applied to what is installed.
        modules: What can be imported where all this is installed.
    """

    packages: tuple[str, ...]
    modules: tuple[str, ...]
    pinned: bool = True
    without_theirs: tuple[str, ...] = ()
    patch: str | None = None


ENVIRONMENTS = {
    "trainer": Environment(("transformers", "peft", "accelerate"), ("peft", "accelerate")),
    "trl": Environment(("transformers", "peft", "trl", "datasets"), ("peft", "trl", "datasets")),
    "m-lora": Environment(
        # moe-peft asks for torch below 2.6 and transformers below 4.47
        ("transformers==4.46.3", "datasets", "evaluate", "accelerate", "scikit-learn", "sentencepiece", "tiktoken"),
        ("moe_peft",),
        pinned=False,
        without_theirs=("moe-peft==2.0.2",),
        patch="mlora.patch",
    ),
}


def default_folder() -> Path:
    """Where the environments are unless told otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "loray" / "peers"


def is_here(name: str) -> bool:
    """Whether this very interpreter has a peer's packages."""
    return all(find_spec(module) is not None for module in ENVIRONMENTS[name].modules)


def interpreter(name: str, folder: Path) -> Path:
    """The Python of a peer's environment, which is made now if it is not there as it should be.

    Raises:
        EnvironmentFailed: A package could not be installed, or the patch does not fit.
    """
    environment = ENVIRONMENTS[name]
    place = folder / name
    python = place / "bin" / "python"
    with _made_anew(place, _identity(environment)) as needed:
        if not needed:
            return python
        print(f"{name}: making its environment in {place} (minutes, once)", flush=True)
        venv.create(place, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        constraints = ["-c", str(_CONSTRAINTS)]
        _call([*pip, *constraints, "torch"])
        if environment.pinned:
            _call([*pip, *constraints, *environment.packages])
        else:
            _call([*pip, _pinned_torch(), *environment.packages])
        if environment.without_theirs:
            # not compiled: a patch in the same second that leaves the size as it was would not be noticed
            _call([*pip, "--no-deps", "--no-compile", *environment.without_theirs])
        if environment.patch:
            (packages,) = place.glob("lib/python*/site-packages")
            _call(["patch", "-p1", "--batch", "--directory", str(packages), "--input", str(_HERE / environment.patch)])
    return python


@contextmanager
def _made_anew(place: Path, identity: str) -> Iterator[bool]:
    """Whether something is to be made; marks the place as whole when that went well."""
    mark = place / "whole"
    needed = not mark.is_file() or mark.read_text("utf-8") != identity
    yield needed
    if needed:
        mark.write_text(identity, encoding="utf-8")


def _identity(environment: Environment) -> str:
    """Differs whenever the environment would be another one."""
    parts = [json.dumps(asdict(environment)), sys.version, _CONSTRAINTS.read_text("utf-8")]
    if environment.patch:
        parts.append((_HERE / environment.patch).read_text("utf-8"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _pinned_torch() -> str:
    lines = _CONSTRAINTS.read_text("utf-8").splitlines()
    return next(line.split(";")[0].strip() for line in lines if line.startswith("torch=="))


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise EnvironmentFailed(f"{command[0]} is not installed; it is needed to make a peer's environment") from error
    if done.returncode:
        raise EnvironmentFailed(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
