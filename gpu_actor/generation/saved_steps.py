"""Which saved adapter of a job is meant: that of its end, of a checkpoint, or the best one so far."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from gpu_actor.contract.errors import AdapterError
from gpu_actor.contract.questions import Step
from gpu_actor.paths import file_names
from gpu_actor.training.checkpoint import best_folder, best_steps


def saved_step(place: str, step: Step) -> tuple[Path, int | None]:
    """The folder that holds the adapter of a step, and the step; None: the adapter of the job's end.

    Args:
        place: The job's output folder.
        step: `latest` and `best` of a finished job are the adapter that it left.

    Raises:
        AdapterError: There is none; the message says what there is.
    """
    folder = Path(place)
    steps = (file_names.checkpoint_step(path.name) for path in folder.glob(file_names.CHECKPOINTS))
    name, number = chosen(
        place,
        {step for step in steps if step is not None},
        (folder / file_names.ADAPTER_CONFIG).is_file(),
        lambda: {number for number in best_steps(folder) if best_folder(folder, number).is_dir()},
        step,
    )
    return folder / name, number


def chosen(
    place: str, saved: Collection[int], is_finished: bool, best: Callable[[], Collection[int]], step: Step
) -> tuple[str, int | None]:
    """The name of the folder that holds the adapter of a step, empty for the output folder itself, and the step.

    Args:
        place: The job's output folder, for people.
        saved: Steps of its checkpoints.
        is_finished: Whether a finished adapter is there.
        best: Gives the steps whose best adapters are there and count.
        step: As in `saved_step`.

    Raises:
        AdapterError: There is none; the message says what there is.
    """
    if isinstance(step, int):
        if step in saved:
            return file_names.checkpoint_folder(step), step
        there = ", ".join(map(str, sorted(saved))) or "no checkpoint"
        raise AdapterError(f"{place}: no checkpoint of step {step} there; there is {there}")
    if is_finished:
        return "", None
    if step == "best":
        newest = max(best(), default=None)
        if newest is None:
            raise AdapterError(f"{place}: no best step there; a job with early_stop.patience keeps one")
        return f"{file_names.BEST}{newest}", newest
    if not saved:
        raise AdapterError(f"{place}: neither a finished adapter nor a checkpoint there; give a job's output folder")
    return file_names.checkpoint_folder(max(saved)), max(saved)
