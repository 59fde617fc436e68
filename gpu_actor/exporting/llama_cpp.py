"""llama.cpp's converters, run as they are: found in `LLAMA_CPP_DIR`, or on the PATH."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gpu_actor.contract.errors import LorayError
from gpu_actor.contract.messages import shortened

MODEL_CONVERTER = "convert_hf_to_gguf.py"
ADAPTER_CONVERTER = "convert_lora_to_gguf.py"
_OUTTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_SHOWN = 1500


def find_converter(name: str, by_hand: Sequence[Sequence[str]]) -> Path:
    """The path of a converter.

    Args:
        name: Of its file.
        by_hand: Commands that do by hand what is wanted, for the message.

    Raises:
        LorayError: It is not there; the message says how to get it, and the commands.
    """
    folder = os.environ.get("LLAMA_CPP_DIR")
    if folder:
        path = Path(folder).expanduser() / name
        if path.is_file():
            return path
        raise LorayError(f"LLAMA_CPP_DIR: {folder} has no {name}; give a checkout of llama.cpp")
    if found := shutil.which(name):
        return Path(found)
    commands = "\n".join(f"  {shlex.join(command)}" for command in by_hand)
    raise LorayError(
        f"GGUF is written by llama.cpp's own {name}, which is neither in LLAMA_CPP_DIR nor on the PATH. Get it with\n"
        f"  git clone --depth 1 https://github.com/ggml-org/llama.cpp && export LLAMA_CPP_DIR=$PWD/llama.cpp\n"
        f"and give the command again; or by hand, in the folder where it is:\n{commands}"
    )


def convert(converter: Path, arguments: Sequence[str], draft: Path, target: Path) -> None:
    """Run a converter; the file appears when it is whole.

    Args:
        converter: Its path.
        arguments: All but the output file.
        draft: Where the converter writes, on the disk of the target.
        target: The GGUF file.

    Raises:
        LorayError: It fails; the message ends with its last lines.
    """
    command = [sys.executable, str(converter), *arguments, "--outfile", str(draft)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or not draft.is_file():
        said = [line for line in done.stderr.splitlines() if line.strip()][-5:] or ["(nothing)"]
        last = shortened("\n  ".join(said), _SHOWN)
        raise LorayError(f"{converter} ended with {done.returncode}; its last lines:\n  {last}")
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(draft, target)


def model_arguments(folder: Path, dtype: str) -> list[str]:
    """What the model converter is told, but for the output file."""
    return [str(folder), "--outtype", _OUTTYPES.get(dtype, dtype)]


def adapter_arguments(adapter: Path, base: Path) -> list[str]:
    """What the adapter converter is told, but for the output file; of the base it reads the configuration alone."""
    return [str(adapter), "--base", str(base), "--outtype", "f32"]
