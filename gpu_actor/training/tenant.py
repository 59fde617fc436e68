"""One tenant of a base model: an adapter in training, with its state.

Weights, optimizer, schedule, clip, data cursor, dropout seeds and counters belong to one tenant; nothing here knows
of any other.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from gpu_actor.adapters.peft_files import load_adapter
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.batch.shared_batch import MicroBatch
from gpu_actor.contract.config import AdapterSpec
from gpu_actor.contract.errors import AdapterError, TrainingError
from gpu_actor.contract.report import TenantReport, TenantState
from gpu_actor.data.dataset import LoadedDataset
from gpu_actor.data.samples import digest
from gpu_actor.losses.objectives import SegmentLoss, StepSums
from gpu_actor.storage.mirror import Mirror
from gpu_actor.training.checkpoint import Progress
from gpu_actor.training.clip import Clip
from gpu_actor.training.early_stop import diverged, overfitted
from gpu_actor.training.metrics import added
from gpu_actor.training.micro_batches import MicroBatches
from gpu_actor.training.optimizer import make_optimizer, make_scheduler, warmup_steps
from gpu_actor.training.references import reference_folder
from gpu_actor.training.run_files import RunFiles
from gpu_actor.training.sample_order import DataCursor, MixCounts
from gpu_actor.training.taken_step import StepValues, TakenStep

_RATE_WINDOW = 20  # optimizer steps over which tokens/s and the time left are averaged


class Tenant:
    """One adapter in training.

    The engine asks for `pending()` micro-batches, runs some of them in shared batches, hands back their losses through
    `ran()`, calls `take_step()` when the optimizer step is complete, and `settle()` once its numbers are read.

    Attributes:
        spec: What to train.
        attempt: Which assignment of the job this is; reports carry it.
        weights: The adapter.
        progress: Counters, as they go into a checkpoint.
        files: What it leaves in its output folder.
        left_out: Shared batches made without this adapter since its last one.
        split: Parts that a micro-batch is run in at least; raised when memory runs out.
        cap: Most tokens of a part (a single sample that is longer excepted); None: any number.
    """

    def __init__(
        self,
        spec: AdapterSpec,
        attempt: int,
        weights: AdapterWeights,
        data: LoadedDataset,
        reference: AdapterWeights | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        """Set up training, from the newest checkpoint in the output folder if there is one.

        Args:
            spec: What to train.
            attempt: Which assignment of the job this is.
            weights: The adapter; its values are set here.
            data: Its samples.
            reference: What `read_reference` gives for `spec`.
            mirror: Brings its files to a storage, if its output folder is there.

        Raises:
            AdapterError: The start adapter or the checkpoint is damaged or does not fit, or the reference is missing.
        """
        if reference is None and reference_folder(spec) is not None:
            raise AdapterError(f"the reference adapter {reference_folder(spec)} was not loaded")
        self.spec = spec
        self.attempt = attempt
        self.weights = weights
        self.data = data
        self.cursor = DataCursor(spec.training, len(data.train), data.mix)
        self.optimizer = make_optimizer(weights, spec.training)
        self.scheduler = make_scheduler(self.optimizer, spec.training, self.cursor.total_steps)
        self.files = RunFiles(spec, weights, self.optimizer, self.scheduler, digest(data.train, data.val), mirror)
        self.output_dir = self.files.folder
        self.progress = self._start()
        self._micro_batches = MicroBatches(spec.training, weights, data, reference)
        self._stop_requested: str | None = None
        self._leaves = False
        self._taken: TakenStep | None = None  # the latest optimizer step, as long as its numbers are not read
        self.left_out = 0
        self.split = 1
        self.cap: int | None = None
        self._longest = int(data.train.lengths().max())
        self._mix_counts = MixCounts(data)
        self._mean_step_tokens = self._mix_counts.tokens_per_epoch / self.cursor.steps_per_epoch
        self._times: deque[tuple[float, int]] = deque([(time.monotonic(), self.progress.tokens)], _RATE_WINDOW)
        self._plan_step()

    def _start(self) -> Progress:
        resumed = self.files.resume()
        if resumed is not None:
            return resumed
        if self.spec.lora.init_adapter is not None:
            load_adapter(Path(self.spec.lora.init_adapter), self.weights)
        else:
            self.weights.initialise(self.spec.training.seed)
        return Progress()

    # -- the optimizer step in work ------------------------------------------------------------------------------

    def _plan_step(self) -> None:
        """Lay out the micro-batches of the next optimizer step; nothing of it has run yet."""
        self.weights.zero_grad()
        self._sums = StepSums()
        self._done = 0
        self._pending: list[MicroBatch] = []
        if self.finished:
            return
        step = self.steps_taken
        self._pending = self._micro_batches.of_step(step, self.cursor.step(step), self.split, self.cap)
        self._step_tokens = sum(micro_batch.tokens for micro_batch in self._pending)

    @property
    def steps_taken(self) -> int:
        """Optimizer steps that are made, the one included whose numbers are not read yet."""
        return self.progress.step if self._taken is None else self._taken.number

    @property
    def finished(self) -> bool:
        """Whether every optimizer step is made, or no further one is wanted."""
        return self.steps_taken >= self.cursor.total_steps or self.stop_reason is not None

    @property
    def stop_reason(self) -> str | None:
        """Why the job stops before its last step; None as long as it does not."""
        return self._stop_requested or overfitted(self.spec.early_stop, self.progress.watch)

    def stop(self, reason: str) -> None:
        """Make no further optimizer step; the one in work is dropped."""
        self._stop_requested = reason
        self._plan_step()

    @property
    def pending(self) -> list[MicroBatch]:
        """Micro-batches of the optimizer step in work that have not run yet."""
        return self._pending[self._done :]

    def ran(self, losses: Sequence[SegmentLoss]) -> None:
        """The first `len(losses)` pending micro-batches went through forward and backward; these are their losses."""
        self._done += len(losses)
        for loss in losses:
            self._sums.add(loss)

    def limit_micro_batches(self, cap: int) -> None:
        """Run micro-batches in parts of at most so many tokens, beginning with the optimizer step in work."""
        self.cap = cap
        self._plan_step()

    def rewind_step(self, split: int | None = None) -> None:
        """Forget what has run of the optimizer step in work; optionally run its micro-batches in smaller parts."""
        self.split = split or self.split
        self._plan_step()

    @property
    def step_loss(self) -> torch.Tensor:
        """Scalar on the device: the loss of what has run of the optimizer step in work."""
        return self._sums.loss

    @property
    def norm_limit(self) -> float:
        """The largest gradient norm that is not clipped; infinite where none is."""
        return self.spec.training.max_grad_norm or math.inf

    def take_step(self, clip: Clip | None = None) -> torch.Tensor:
        """Clip, step, schedule: the optimizer step is complete. Nothing is read from the device.

        A step whose loss or gradient is not finite leaves the adapter as it was.

        Args:
            clip: How the gradient is clipped, where that was found for several adapters together; None: by itself.

        Returns:
            Its numbers [n] on the device; `settle` wants them.
        """
        norm = self._clip() if clip is None else clip.norm
        number, rate = self.steps_taken + 1, self.learning_rate
        taken = TakenStep.of(number, rate, self._step_tokens, self._sums, norm, self.weights)
        self.optimizer.found_inf = taken.bad if clip is None else clip.bad  # type: ignore[attr-defined]
        if clip is not None:
            self.optimizer.grad_scale = clip.divisor  # type: ignore[attr-defined]
        self.optimizer.step()
        self.scheduler.step()
        self._taken = taken
        self._plan_step()
        return taken.values

    def settle(self, values: Sequence[float]) -> None:
        """Count, log and watch the step that was taken.

        Args:
            values: What `take_step` returned, read.

        Raises:
            TrainingError: The loss or the gradient was not finite, or the training diverges.
        """
        taken, self._taken = self._taken, None
        if taken is None:
            raise RuntimeError("no optimizer step was taken")
        found = taken.read(values)
        if taken.number == 1:
            self.progress = dataclasses.replace(self.progress, unreached=taken.unreached(values, self.weights))
        self._count(taken, found)
        self._watch_loss(taken.number, found.loss)

    def _clip(self) -> torch.Tensor:
        """Clip the gradient in place; returns its norm before that."""
        if self.weights.gradient_scale != 1.0:
            self.weights.gradient.div_(self.weights.gradient_scale)
        return torch.nn.utils.clip_grad_norm_([self.weights.flat], self.norm_limit)

    def _watch_loss(self, step: int, loss: float) -> None:
        watch = self.progress.watch.after_step(step, loss)
        self.progress = dataclasses.replace(self.progress, watch=watch)
        warmup = warmup_steps(self.spec.training, self.cursor.total_steps)
        reason = diverged(self.spec.early_stop, watch, step, warmup)
        if reason is not None:
            raise TrainingError(reason)

    def _count(self, taken: TakenStep, found: StepValues) -> None:
        before, step = self.progress, taken.number
        after = dataclasses.replace(
            before,
            step=step,
            tokens=before.tokens + taken.tokens,
            loss=found.loss,
            logged_loss=before.logged_loss + found.loss,
            logged_steps=before.logged_steps + 1,
            logged_figures=added(before.logged_figures, found.figures),
            figure_steps=added(before.figure_steps, dict.fromkeys(found.figures, 1)),
        )
        if step % self.spec.training.logging_steps == 0 or step == self.cursor.total_steps:
            self.files.log(
                step=step,
                epoch=self.cursor.epoch_after(step),
                loss=after.logged_loss / after.logged_steps,
                **{name: value / after.figure_steps[name] for name, value in after.logged_figures.items()},
                learning_rate=taken.learning_rate,
                grad_norm=found.norm,
                tokens=taken.tokens,
                **self._mix_counts.figures(self.cursor.step(step - 1)),
                time=time.time(),
            )
            after = dataclasses.replace(after, logged_loss=0.0, logged_steps=0, logged_figures={}, figure_steps={})
        self.progress = after
        self._times.append((time.monotonic(), after.tokens))

    # -- evaluation, files ---------------------------------------------------------------------------------------

    @property
    def wants_evaluation(self) -> bool:
        """Whether the optimizer step just made calls for an evaluation."""
        if not len(self.data.val):
            return False
        every = self.spec.training.eval_steps
        return self.cursor.ends_epoch(self.steps_taken) if every is None else self.steps_taken % every == 0

    def evaluation_batches(self) -> list[MicroBatch]:
        """The held-out samples as micro-batches without dropout, whose losses add up to the mean."""
        return self._micro_batches.of_evaluation(self.split, self.cap)

    def evaluated(self, eval_loss: float, figures: Mapping[str, float]) -> None:
        """Record the loss on the held-out samples, and what else is logged of them.

        Raises:
            TrainingError: The loss is not finite.
        """
        if not math.isfinite(eval_loss):
            raise TrainingError(
                f"the evaluation loss became {eval_loss} at optimizer step {self.progress.step}; look for damaged "
                "samples, or lower training.learning_rate; the last checkpoint is kept"
            )
        self.progress = dataclasses.replace(self.progress, eval_loss=eval_loss)
        step = self.progress.step
        self.files.log(
            step=step,
            epoch=self.cursor.epoch_after(step),
            eval_loss=eval_loss,
            **{f"eval_{name}": value for name, value in figures.items()},
            time=time.time(),
        )
        self._watch_evaluation(step, eval_loss)

    def _watch_evaluation(self, step: int, eval_loss: float) -> None:
        """With patience, keep the best adapter, and stop when it has not become better for long."""
        config = self.spec.early_stop
        if config.patience is None:
            return
        watch = self.progress.watch.after_evaluation(step, eval_loss, config.min_delta)
        self.progress = dataclasses.replace(self.progress, watch=watch)
        if watch.stale == 0:
            self.files.save_best(step)

    @property
    def wants_checkpoint(self) -> bool:
        """Whether the optimizer step just made calls for a checkpoint."""
        return self.steps_taken % self.spec.training.save_steps == 0 and not self.finished

    @property
    def pauses(self) -> bool:
        """Whether something is to be done after the optimizer step just made, before the next one."""
        return self.wants_evaluation or self.finished or self.wants_checkpoint

    def save_checkpoint(self) -> None:
        """Write a checkpoint of the last complete optimizer step; where that cannot be done the job goes on for now."""
        self.files.save(self.progress)

    def leave(self) -> None:
        """Write a checkpoint of the last complete optimizer step, and make no further one."""
        self._leaves = True
        self.save_checkpoint()

    @property
    def may_leave(self) -> bool:
        """Whether it was asked to leave, and what it wrote is where others find it, or cannot be brought there."""
        return self._leaves and (not self.files.is_underway or bool(self.files.failure))

    @property
    def waits(self) -> bool:
        """Whether no further optimizer step is made until the output folder has what is written."""
        files, training = self.files, self.spec.training
        if self._leaves:
            return True
        if not files.failure and not files.is_underway:
            return False
        most = training.max_unsaved_steps or 2 * training.save_steps
        return self.finished or files.open_best is not None or self.steps_taken - files.saved_step >= most

    def export(self) -> bool:
        """Put the finished adapter into the output folder, with patience the best one; False: try it again."""
        return self.files.export(self.progress, self._better_step)

    @property
    def _better_step(self) -> int | None:
        """With patience, the earlier step whose adapter is exported; None where that is the last one."""
        best = self.progress.watch.best_step
        return best if self.spec.early_stop.patience is not None and 0 < best < self.progress.step else None

    @property
    def end_reason(self) -> str | None:
        """What there is to say of a finished run: why it stopped early, and which adapter it left if not its last."""
        early, best = self.stop_reason, self._better_step
        if best is None or (early is not None and self._stop_requested is None):  # patience says it by itself
            return early
        which = f"the adapter is that of step {best}, which has the lowest evaluation loss"
        return f"{early}; {which}" if early else which

    def discard(self) -> None:
        """Remove what would let the job go on: it was cancelled."""
        self.files.discard()

    # -- reporting -----------------------------------------------------------------------------------------------

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next optimizer step."""
        return float(self.scheduler.get_last_lr()[0])

    def _unsaved(self) -> str:
        """Why the job has no newer checkpoint or no adapter yet, in words; empty where all is saved."""
        waits = f"waits at step {self.progress.step} until its folder can be written"
        since = f"nothing is saved since step {self.files.saved_step}"
        if self.files.failure:
            return f"{since}, the job {waits if self.waits else 'goes on for now'}: {self.files.failure}"
        if self.waits and self.files.is_slow:
            return f"{since}, the job waits at step {self.progress.step} until the upload has arrived"
        return ""

    def report(self, state: TenantState, reason: str | None = None) -> TenantReport:
        """Where the adapter stands."""
        (first_time, first_tokens), (last_time, last_tokens) = self._times[0], self._times[-1]
        seconds, steps = last_time - first_time, len(self._times) - 1
        left = self.cursor.total_steps - self.progress.step
        return TenantReport(
            job_id=self.spec.job_id,
            attempt=self.attempt,
            state=state,
            step=self.progress.step,
            total_steps=self.cursor.total_steps,
            epoch=self.cursor.epoch_after(self.progress.step),
            loss=self.progress.loss,
            eval_loss=self.progress.eval_loss,
            learning_rate=self.learning_rate,
            tokens=self.progress.tokens,
            tokens_per_s=(last_tokens - first_tokens) / seconds if seconds > 0 else 0.0,
            eta_s=left * seconds / steps if steps > 0 else None,
            samples=len(self.data.train),
            longest=self._longest,
            tokens_per_step=self._mean_step_tokens,
            truncated=self.data.truncated,
            dropped=self.data.dropped,
            unread_columns=self.data.unread,
            shortened=self.data.shortened,
            unreached=self.progress.unreached,
            unsaved=self._unsaved(),
            notes=tuple(self.files.notes),
            reason=reason,
        )
