"""Which saved adapter of a job is meant: that of its end, of a checkpoint, or the best one so far."""

from __future__ import annotations

from pathlib import Path

from gpu_actor.contract import file_names
from gpu_actor.contract.errors import AdapterError
from gpu_actor.contract.questions import Step
from gpu_actor.contract.urls import is_url
from gpu_actor.training.checkpoint import best_folder, best_steps


def saved_step(place: str, step: Step) -> tuple[Path, int | None]:
    """The folder that holds the adapter of a step, and the step; None: the adapter of the job's end.

    Args:
        place: The job's output folder.
        step: `latest` and `best` of a finished job are the adapter that it left.

    Raises:
        AdapterError: There is none, or it is in a bucket; the message says what there is.
    """
    if is_url(place):
        raise AdapterError(f"{place} is no folder here; download it, and give the folder that it is in then")
    folder = Path(place)
    saved = {
        number: path
        for path in folder.glob(file_names.CHECKPOINTS)
        if (number := file_names.checkpoint_step(path.name)) is not None
    }
    if isinstance(step, int):
        if step in saved:
            return saved[step], step
        there = ", ".join(map(str, sorted(saved))) or "no checkpoint"
        raise AdapterError(f"{folder}: no checkpoint of step {step} there; there is {there}")
    if (folder / file_names.ADAPTER_CONFIG).is_file():
        return folder, None
    if step == "best":
        best = max((number for number in best_steps(folder) if best_folder(folder, number).is_dir()), default=None)
        if best is None:
            raise AdapterError(f"{folder}: no best step there; a job with early_stop.patience keeps one")
        return best_folder(folder, best), best
    if not saved:
        raise AdapterError(f"{folder}: neither a finished adapter nor a checkpoint there; give a job's output folder")
    return saved[max(saved)], max(saved)
