"""Checkpoints: all that the training of one adapter needs to go on; the adapter itself is in PEFT's layout.

Whatever appears under its final name is whole: folders are written beside it, flushed, and renamed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpu_actor.adapters.peft_files import adapter_files, load_adapter, save_adapter
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.adapters.whole_files import read_tensors, sync_folder, write_together
from gpu_actor.contract.errors import AdapterError, DamagedFileError
from gpu_actor.contract.messages import one_line
from gpu_actor.paths import file_names
from gpu_actor.storage.checksums import check_files, read_plain
from gpu_actor.training.early_stop import Watch

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "trainer_state.json"


@dataclass(frozen=True)
class Progress:
    """Counters of a job at an optimizer step. Order of the data and dropout follow from `step` alone."""

    step: int = 0
    tokens: int = 0
    logged_loss: float = 0.0  # sum of the losses since the last logged row
    logged_steps: int = 0  # and how many steps it holds
    logged_figures: dict[str, float] = field(default_factory=dict)  # the same sums of what else is logged
    figure_steps: dict[str, int] = field(default_factory=dict)  # how many of the steps have each figure
    unreached: str = ""  # layers that had no gradient in the first step, in words
    loss: float | None = None
    eval_loss: float | None = None
    watch: Watch = field(default_factory=Watch)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Progress:
        """The inverse of `dataclasses.asdict`."""
        steps = dict.fromkeys(data.get("logged_figures", {}), data.get("logged_steps", 0))  # as older files mean it
        return cls(**{"figure_steps": steps, **data, "watch": Watch(**data.get("watch", {}))})


def save_checkpoint(
    output_dir: Path,
    weights: AdapterWeights,
    base_model: str,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    progress: Progress,
    data: str,
    keep: int,
) -> Path:
    """Write `checkpoint-<step>` whole, then remove all but the newest few.

    One that is there already is kept: the same step of the same job is equal by construction.

    Args:
        output_dir: Where the job's files are; made where it is not there.
        weights: The adapter.
        base_model: Name of its base.
        optimizer: With its moments.
        scheduler: The learning rate's.
        progress: Counters.
        data: Digest of the data set, by which `load_checkpoint` knows it again.
        keep: Checkpoints that stay, this one included; at least 1.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: It cannot be written; the older ones stand.
    """
    final = output_dir / file_names.checkpoint_folder(progress.step)
    if not final.exists():
        draft = output_dir / f".{final.name}.{os.getpid()}.tmp"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            tensors, objects = adapter_files(weights, base_model)
            state = {"progress": asdict(progress), "scheduler": scheduler.state_dict(), "data": data}
            write_together(draft, tensors | {OPTIMIZER_FILE: _moments(optimizer)}, objects | {STATE_FILE: state})
            sync_folder(draft)
            os.rename(draft, final)
        except Exception:
            shutil.rmtree(draft, ignore_errors=True)  # a full disk should not stay full of half a checkpoint
            raise
        sync_folder(output_dir)
    folders = _checkpoints(output_dir)
    for old in folders[: max(0, folders.index(final) + 1 - keep)]:  # a newer one belongs to a newer attempt
        _remove(old)
    return final


def load_checkpoint(
    output_dir: Path, weights: AdapterWeights, optimizer: torch.optim.Optimizer, scheduler: Any, data: str
) -> tuple[Progress | None, list[str]]:
    """Go on from the newest checkpoint in `output_dir` that is whole; damaged ones are removed.

    Returns:
        Where it stood, None when there is none; and what became of damaged ones, a sentence for each.

    Raises:
        AdapterError: The checkpoint belongs to other settings or other data.
    """
    damaged: list[str] = []
    for folder in reversed(_checkpoints(output_dir)):
        try:
            return _load(folder, weights, optimizer, scheduler, data), damaged
        except DamagedFileError as error:
            damaged.append(f"{folder.name} is damaged and was removed ({one_line(error)})")
            _remove(folder)  # else the same step, made again, would find it there and leave it
    return None, damaged


def _load(
    folder: Path, weights: AdapterWeights, optimizer: torch.optim.Optimizer, scheduler: Any, data: str
) -> Progress:
    """Read a checkpoint; nothing is changed before all of it was read.

    Raises:
        DamagedFileError: It is damaged.
        AdapterError: It belongs to other settings or other data.
    """
    check_files(folder)
    moments = read_tensors(folder / OPTIMIZER_FILE)
    state = _read_state(folder)
    if state["data"] != data:
        raise AdapterError(
            f"the data set is no longer the one that {folder} was trained on: its records, their order, the "
            "tokenizer or the chat template have changed; bring them back, or remove the folder to start over"
        )
    load_adapter(folder, weights)
    scheduler.load_state_dict(state["scheduler"])
    _restore(optimizer, moments)
    for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
    progress: Progress = state["progress"]
    return progress


def _read_state(folder: Path) -> dict[str, Any]:
    """`progress`, `scheduler` and `data` of a checkpoint.

    Raises:
        DamagedFileError: The file is damaged.
    """
    path = folder / STATE_FILE
    try:
        state = json.loads(read_plain(path))
        return {
            "progress": Progress.from_dict(state["progress"]),
            "scheduler": dict(state["scheduler"]),
            "data": state["data"],
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path}: damaged ({error})") from None


def best_steps(output_dir: Path) -> set[int]:
    """The steps whose adapters the checkpoints call the best: whoever goes on from one of these may export it."""
    steps = set()
    for folder in _checkpoints(output_dir):
        with contextlib.suppress(DamagedFileError):  # nobody goes on from that one
            steps.add(_read_state(folder)["progress"].watch.best_step)
    return steps


def save_best(output_dir: Path, weights: AdapterWeights, base_model: str, step: int) -> None:
    """Write the adapter of `step` whole, as the best one so far."""
    final = best_folder(output_dir, step)
    draft = output_dir / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_adapter(draft, weights, base_model)
    shutil.rmtree(final, ignore_errors=True)  # of a run that was lost, whose rounding may differ
    os.rename(draft, final)
    sync_folder(output_dir)


def best_folder(output_dir: Path, step: int) -> Path:
    """Where the adapter of `step` lies if it was the best one. A run that is resumed may make a step again, and find
    another one the best: so each has a folder of its own, and the checkpoint says which one counts."""
    return output_dir / f"{file_names.BEST}{step}"


def keep_best(output_dir: Path, steps: Collection[int]) -> None:
    """Remove the best adapters of all other steps."""
    kept = {best_folder(output_dir, step) for step in steps}
    for folder in output_dir.glob(f"{file_names.BEST}*"):
        if folder not in kept:
            _remove(folder)


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as `<number of the parameter>.<name>`."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{number}.{name}": value.cpu()
        for number, parameter in enumerate(parameters)
        for name, value in optimizer.state[parameter].items()
    }


def _restore(optimizer: torch.optim.Optimizer, moments: dict[str, torch.Tensor]) -> None:
    """Give the optimizer its state back: torch knows on which device each part of it must be, the step count too."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in moments.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def remove_checkpoints(output_dir: Path) -> None:
    """Remove every checkpoint, finished or half-written, and the best adapters."""
    keep_best(output_dir, ())
    for folder in _checkpoints(output_dir):
        _remove(folder)
    remove_drafts(output_dir)


def remove_drafts(output_dir: Path) -> None:
    """Remove what processes that have ended were writing or removing."""
    for draft in output_dir.glob(file_names.CHECKPOINT_DRAFTS):
        shutil.rmtree(draft, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Take a folder's final name away first: half removed under that name, it would pass for a whole one."""
    leftover = folder.with_name(f".{folder.name}.old.tmp")
    shutil.rmtree(leftover, ignore_errors=True)
    with contextlib.suppress(OSError):  # it is not there; or it cannot be removed, which must not end the job
        os.rename(folder, leftover)
    shutil.rmtree(leftover, ignore_errors=True)


def _checkpoints(output_dir: Path) -> list[Path]:
    steps = {path: file_names.checkpoint_step(path.name) for path in output_dir.glob(file_names.CHECKPOINTS)}
    return [path for step, path in sorted((step, path) for path, step in steps.items() if step is not None)]
