"""Adapters on disk: PEFT's layout, and checkpoints that hold all that training needs to go on.

Whatever appears under its final name is whole: files and folders are written beside it, flushed, and renamed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gpu_actor.early_stop import Watch
from gpu_actor.errors import AdapterError
from gpu_actor.footprint import tensor_name
from gpu_actor.lora import AdapterWeights

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "trainer_state.json"
METRICS_FILE = "metrics.jsonl"
BEST_FOLDER = "checkpoint-best"  # the adapter alone, at the lowest evaluation loss so far
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Progress:
    """Counters of a job at an optimizer step. Order of the data and dropout follow from `step` alone."""

    step: int = 0
    tokens: int = 0
    logged_loss: float = 0.0  # sum of the losses since the last logged row
    logged_steps: int = 0  # and how many steps it holds
    loss: float | None = None
    eval_loss: float | None = None
    watch: Watch = field(default_factory=Watch)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Progress:
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**data, "watch": Watch(**data.get("watch", {}))})


def save_adapter(folder: Path, weights: AdapterWeights, base_model: str) -> None:
    """Write `adapter_config.json`, then `adapter_model.safetensors`, as PEFT names them; each appears whole."""
    _write_json(folder / CONFIG_FILE, peft_config(weights, base_model))
    tensors: dict[str, torch.Tensor] = {}
    for index, (a, b) in weights.layers.items():
        tensors[tensor_name(weights.names[index], "A")] = a.detach().cpu().contiguous()
        tensors[tensor_name(weights.names[index], "B")] = b.detach().cpu().contiguous()
    _write_tensors(folder / ADAPTER_FILE, tensors)


def peft_config(weights: AdapterWeights, base_model: str) -> dict[str, Any]:
    """The contents of PEFT's `adapter_config.json`."""
    lora = weights.lora
    targets: str | list[str] = lora.target_modules
    if targets == "all-linear":
        targets = sorted({name.rsplit(".", 1)[-1] for name in weights.names.values()})
    alpha = int(lora.lora_alpha) if lora.lora_alpha == int(lora.lora_alpha) else lora.lora_alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.r,
        "lora_alpha": alpha,
        "lora_dropout": lora.lora_dropout,
        "target_modules": targets,
        "use_rslora": lora.use_rslora,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": weights.transposed,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
    }


def load_adapter(folder: Path, weights: AdapterWeights) -> None:
    """Read `adapter_model.safetensors` into `weights`.

    Raises:
        AdapterError: The file is damaged, or a tensor is missing, superfluous or of another shape.
    """
    tensors = _read_tensors(folder / ADAPTER_FILE)
    for index, pair in weights.layers.items():
        for which, target in zip("AB", pair, strict=True):
            name = tensor_name(weights.names[index], which)
            found = tensors.pop(name, None)
            if found is None or found.shape != target.shape:
                has = "is missing" if found is None else f"has shape {list(found.shape)}"
                raise AdapterError(f"{folder / ADAPTER_FILE}: {name} {has}, wanted {list(target.shape)}")
            target.copy_(found)
    if tensors:
        raise AdapterError(
            f"{folder / ADAPTER_FILE}: {len(tensors)} tensors that this job does not train, such as {min(tensors)}"
        )


def save_checkpoint(
    output_dir: Path,
    weights: AdapterWeights,
    base_model: str,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    progress: Progress,
) -> Path:
    """Write `checkpoint-<step>` whole, then remove older ones.

    Returns:
        The checkpoint's folder.
    """
    final = output_dir / f"checkpoint-{progress.step}"
    draft = output_dir / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_adapter(draft, weights, base_model)
    moments = {name: value.cpu() for name, value in optimizer.state[weights.flat].items()}
    _write_tensors(draft / OPTIMIZER_FILE, moments)
    _write_json(draft / STATE_FILE, {"progress": asdict(progress), "scheduler": scheduler.state_dict()})
    if final.exists():  # the same step was saved before this process: equal by construction, the new one wins
        shutil.rmtree(final)
    os.rename(draft, final)
    _sync_folder(output_dir)
    for old in _checkpoints(output_dir):
        if old != final:
            shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(
    output_dir: Path, weights: AdapterWeights, optimizer: torch.optim.Optimizer, scheduler: Any
) -> Progress | None:
    """Go on from the newest checkpoint in `output_dir`; None when there is none.

    Raises:
        AdapterError: The checkpoint is damaged or belongs to other settings.
    """
    folders = _checkpoints(output_dir)
    if not folders:
        return None
    folder = folders[-1]
    load_adapter(folder, weights)
    moments = _read_tensors(folder / OPTIMIZER_FILE)
    try:
        state = json.loads((folder / STATE_FILE).read_text("utf-8"))
        progress = Progress.from_dict(state["progress"])
        scheduler.load_state_dict(state["scheduler"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{folder / STATE_FILE}: damaged ({error}); remove the folder to start over") from None
    restored = {name: value if name == "step" else value.to(weights.flat.device) for name, value in moments.items()}
    optimizer.state[weights.flat].update(restored)
    for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
    return progress


def remove_checkpoints(output_dir: Path) -> None:
    """Remove every checkpoint, finished or half-written, and the best adapter so far."""
    for folder in [*_checkpoints(output_dir), output_dir / BEST_FOLDER, *output_dir.glob(".checkpoint-*.tmp")]:
        shutil.rmtree(folder, ignore_errors=True)


def trim_metrics(output_dir: Path, step: int) -> None:
    """Drop the rows of `metrics.jsonl` after `step`: they will be written again, and a torn last line with them."""
    path = output_dir / METRICS_FILE
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            break
    _write_bytes(path, "".join(kept).encode())


def _checkpoints(output_dir: Path) -> list[Path]:
    found = [(int(m[1]), path) for path in output_dir.glob("checkpoint-*") if (m := _CHECKPOINT.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path}: not a readable safetensors file ({error}); copy or export it again") from None


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(tensors, draft, metadata={"format": "pt"})
    _settle(draft, path)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    _write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def _write_bytes(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.write_bytes(content)
    _settle(draft, path)


def _settle(draft: Path, path: Path) -> None:
    """Flush a draft to the disk and give it its final name."""
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(draft, path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
