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
from gpu_actor.storage.mirror import Mirror
from gpu_actor.training import checkpoint
from gpu_actor.training.checkpoint import Progress
from gpu_actor.training.metrics import append_rows, as_row, trim_metrics

logger = logging.getLogger(__name__)

_AGAIN_SECONDS = 5.0  # between two tries to write
_MOST_ROWS = 100_000  # that wait to be written


class RunFiles:
    """The files of one job.

    Attributes:
        folder: The job's output folder; where that is in a storage, the local one that is mirrored there.
        notes: What happened to the files that a person should hear of, in order.
        open_best: The step whose adapter is the best and could not be written; the weights must not change before.
    """

    def __init__(
        self,
        spec: AdapterSpec,
        weights: AdapterWeights,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        data: str,
        mirror: Mirror | None = None,
    ) -> None:
        """Nothing is read or written yet.

        Args:
            spec: What is trained.
            weights: The adapter.
            optimizer: Its optimizer.
            scheduler: The learning rate's.
            data: Digest of the data set.
            mirror: Brings the files to a storage, if the output folder is there; it has fetched what it found.
        """
        self.folder = Path(spec.output_dir) if mirror is None else mirror.folder
        self.notes: list[str] = []
        self._mirror = mirror
        self._failure = ""  # to write here
        self._saved_step = 0  # here
        self._exported = False
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
        self._saved_step = progress.step if progress else 0
        if self._mirror is not None:
            self._mirror.begin(self._saved_step)
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
        if self._exported:
            return not self.is_underway
        self.save(progress)
        if better_step is not None and not self._best_is_back:
            self._take_back_best(better_step)
        self._exported = self._exported or (self._try(self._write_rows) and self._try(self._write_adapter))
        return self._exported and not self.is_underway

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

    # -- how far it is ---------------------------------------------------------------------------------------------

    @property
    def failure(self) -> str:
        """Why the latest try to write, or to bring something to the storage, failed; empty if it did not."""
        return self._failure or ("" if self._mirror is None else self._mirror.failure)

    @property
    def saved_step(self) -> int:
        """Optimizer step of the newest checkpoint that others can go on from; 0 without any."""
        return self._saved_step if self._mirror is None else self._mirror.saved_step

    @property
    def is_underway(self) -> bool:
        """Whether what is written here is not in the storage yet."""
        return self._mirror is not None and not self._mirror.settled

    @property
    def is_slow(self) -> bool:
        """Whether that takes long."""
        return self._mirror is not None and self._mirror.is_slow

    @property
    def due(self) -> bool:
        """Whether it is time for another try to write what could not be written, or to look whether it has arrived."""
        if self._failure:
            return time.monotonic() >= self._again_at
        return self._exported and not self.is_underway

    def write_again(self, progress: Progress) -> None:
        """Try once more to write what could not be written."""
        if self._try(self._write_rows) and self._try(self._write_best) and self._checkpoint_due:
            self.save(progress)

    def discard(self) -> None:
        """Remove what would let the job go on: it was cancelled."""
        checkpoint.remove_checkpoints(self.folder)
        if self._mirror is not None:
            self._mirror.discard()

    def close(self) -> None:
        """The job has left: nothing more is brought to the storage."""
        if self._mirror is not None:
            self._mirror.close()

    def _bring(self) -> None:
        if self._mirror is not None:
            self._mirror.changed()

    def _write_adapter(self) -> None:
        save_adapter(self.folder, self._weights, self._spec.base_model)
        self._bring()

    def _write_rows(self) -> None:
        if self._rows:
            append_rows(self.folder, self._rows)
            self._rows = []

    def _write_checkpoint(self, progress: Progress) -> None:
        self._write_rows()  # whoever goes on from it does not make them again, nor the best adapter that it names
        self._write_best()
        limit = self._spec.training.save_total_limit
        state = (self._optimizer, self._scheduler, progress, self._data)
        checkpoint.save_checkpoint(self.folder, self._weights, self._spec.base_model, *state, keep=limit)
        if progress.step != self._saved_step:
            self._bring()
        self._saved_step = progress.step
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
            if not self._failure:
                logger.warning("job %s: cannot write to %s: %s", self._spec.name, self.folder, error)
            self._failure = one_line(error)
            self._again_at = time.monotonic() + _AGAIN_SECONDS
            return False
        if not (self._rows or self._checkpoint_due or self.open_best is not None):
            self._failure = ""
        return True
