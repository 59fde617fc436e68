"""What one job leaves in its output folder: metrics, checkpoints, the best adapter, and the finished one.

A folder that cannot be written costs no job and no row: what is to be written waits in memory and is tried again.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpu_actor.adapters.peft_files import load_adapter, save_adapter
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.contract.config import AdapterSpec
from gpu_actor.contract.errors import DamagedFileError
from gpu_actor.contract.messages import one_line
from gpu_actor.training import checkpoint
from gpu_actor.training.checkpoint import Progress
from gpu_actor.training.metrics import append_rows, as_row, trim_metrics

logger = logging.getLogger(__name__)

_AGAIN_SECONDS = 5.0  # between two tries to write
_MOST_ROWS = 100_000  # that wait to be written


class RunFiles:
    """The files of one job.

    Attributes:
        folder: The job's output folder.
        failure: Why the latest try to write failed, in words; empty if it did not.
        notes: What happened to the files that a person should hear of, in order.
        saved_step: Optimizer step of the newest checkpoint; 0 without any.
        open_best: The step whose adapter is the best and could not be written; the weights must not change before.
    """

    def __init__(
        self, spec: AdapterSpec, weights: AdapterWeights, optimizer: torch.optim.Optimizer, scheduler: Any, data: str
    ) -> None:
        """Nothing is read or written yet.

        Args:
            spec: What is trained.
            weights: The adapter.
            optimizer: Its optimizer.
            scheduler: The learning rate's.
            data: Digest of the data set.
        """
        self.folder = Path(spec.output_dir)
        self.failure = ""
        self.notes: list[str] = []
        self.saved_step = 0
        self.open_best: int | None = None
        self._spec, self._weights = spec, weights
        self._optimizer, self._scheduler, self._data = optimizer, scheduler, data
        self._rows: list[str] = []
        self._checkpoint_due = False
        self._best_is_back = False
        self._again_at = 0.0  # monotonic
        self._place = os.path.realpath(self.folder)

    def resume(self) -> Progress | None:
        """Go on from the newest checkpoint that is whole; None where the job starts, whose start values are not set.

        Raises:
            AdapterError: The checkpoint belongs to other settings or other data.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.remove_drafts(self.folder)
        progress, damaged = checkpoint.load_checkpoint(
            self.folder, self._weights, self._optimizer, self._scheduler, self._data
        )
        self.saved_step = progress.step if progress else 0
        if damaged:
            goes_on = f"goes on from step {self.saved_step}" if progress else "has no other, and starts over"
            self.notes += [*damaged[:-1], f"{damaged[-1]}; the job {goes_on}"]
        trim_metrics(self.folder, self.saved_step)
        self._look_at_room()
        return progress

    def _look_at_room(self) -> None:
        """Say it now if what is still to be written is more than the disk has room for."""
        copies = self._spec.training.save_total_limit + 1  # one more while the next one is written
        adapter = self._weights.flat.numel() * self._weights.flat.element_size()
        wanted = adapter * (3 * copies + 1)  # a checkpoint has AdamW's two moments as well
        free = shutil.disk_usage(self.folder).free
        if free < wanted:
            self.notes.append(
                f"{self.folder} has room for {free / 2**20:.0f} MiB, the checkpoints and the adapter take up to "
                f"{wanted / 2**20:.0f} MiB: make room, or lower training.save_total_limit"
            )

    # -- writing -------------------------------------------------------------------------------------------------

    def log(self, **row: Any) -> None:
        """Write a row of metrics; one that cannot be written waits for the next try."""
        self._rows = [*self._rows, as_row(row)][-_MOST_ROWS:]
        self._try(self._write_rows)

    def save(self, progress: Progress) -> None:
        """Write a checkpoint of the last complete optimizer step.

        Where that cannot be done, on a full disk say, the job goes on: from the older one, should it have to.
        """
        if not self._best_is_back:  # else the adapter is no longer that of the last step
            self._checkpoint_due = True
            self._try(lambda: self._write_checkpoint(progress))

    def save_best(self, step: int) -> None:
        """Write the adapter as it is now, the best one so far."""
        self.open_best = step
        self._try(self._write_best)

    def export(self, progress: Progress, better_step: int | None) -> bool:
        """Put the finished adapter into the output folder; returns whether it is there, else it may be tried again.

        The checkpoint of the last step stays until the orchestrator has recorded the end: an actor that dies before
        that finishes the job again from it, instead of training it again from the start.

        Args:
            progress: Of the last step.
            better_step: The earlier step whose adapter is exported; None: the last one.

        Raises:
            DamagedFileError: The adapter of the earlier step is lost.
        """
        self.save(progress)
        if better_step is not None and not self._best_is_back:
            self._take_back_best(better_step)
        adapter, base_model = self._weights, self._spec.base_model
        return self._try(self._write_rows) and self._try(lambda: save_adapter(self.folder, adapter, base_model))

    def _take_back_best(self, step: int) -> None:
        """Give the adapter the values of an earlier step; from now on they are not those of the last one.

        Raises:
            DamagedFileError: They are lost; another adapter than the one that was asked for is none.
        """
        try:
            load_adapter(checkpoint.best_folder(self.folder, step), self._weights)
        except DamagedFileError as error:
            raise DamagedFileError(
                f"the best adapter, that of step {step}, is lost ({one_line(error)}); "
                "`loray retry --from-start` trains it again"
            ) from None
        self._best_is_back = True

    @property
    def due(self) -> bool:
        """Whether it is time for another try to write what could not be written."""
        return bool(self.failure) and time.monotonic() >= self._again_at

    def write_again(self, progress: Progress) -> None:
        """Try once more to write what could not be written."""
        if self._try(self._write_rows) and self._try(self._write_best) and self._checkpoint_due:
            self.save(progress)

    def discard(self) -> None:
        """Remove what would let the job go on: it was cancelled."""
        checkpoint.remove_checkpoints(self.folder)

    def _write_rows(self) -> None:
        if self._rows:
            append_rows(self.folder, self._rows)
            self._rows = []

    def _write_checkpoint(self, progress: Progress) -> None:
        limit = self._spec.training.save_total_limit
        state = (self._optimizer, self._scheduler, progress, self._data)
        checkpoint.save_checkpoint(self.folder, self._weights, self._spec.base_model, *state, keep=limit)
        self.saved_step = progress.step
        self._checkpoint_due = False
        checkpoint.keep_best(self.folder, self._kept_best())

    def _write_best(self) -> None:
        step = self.open_best
        if step is not None:
            checkpoint.save_best(self.folder, self._weights, self._spec.base_model, step)
            self.open_best = None
            checkpoint.keep_best(self.folder, {step, *self._kept_best()})

    def _kept_best(self) -> set[int]:
        """A restart goes on from a checkpoint, which names the best step of its own time."""
        return checkpoint.best_steps(self.folder) if self._spec.early_stop.patience is not None else set()

    def _try(self, write: Callable[[], None]) -> bool:
        """Write something; where that fails, say why, and when to try again."""
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True)
                self.notes.append(f"{self.folder} was gone, and was made again; what was in it is lost")
            if os.path.realpath(self.folder) != self._place:
                raise OSError(f"{self.folder} leads elsewhere than when the job began ({self._place}); put it back")
            write()
        except OSError as error:
            if not self.failure:
                logger.warning("job %s: cannot write to %s: %s", self._spec.name, self.folder, error)
            self.failure = one_line(error)
            self._again_at = time.monotonic() + _AGAIN_SECONDS
            return False
        if not (self._rows or self._checkpoint_due or self.open_best is not None):
            self.failure = ""
        return True
