"""What shared steps cost: seconds and peak bytes of each, for the scheduler to learn from."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from gpu_actor.contract.report import StepSample
from gpu_actor.device.memory import MemoryMeter
from gpu_actor.device.stopwatch import Stopwatch

_KEPT = 64  # samples that wait to be fetched; older ones go


class StepMeter:
    """Measures shared steps one at a time: `begin`, the step, `end`.

    The first step of every adapter is a warm-up (its moments are allocated, kernels are chosen) and gives no sample.
    On CUDA the sample of a step is there at the end of the next one: its kernels still run when it ends.

    Attributes:
        memory: The device's meter.
        before: Bytes in use when the step began.
        peak: Highest use of the latest step.
        highest: Highest use of all steps, and of what was done beside them.
        highest_alone: Highest use of the steps during which no other thread took memory; 0 before the first one.
        alone: Whether nothing but the latest step took memory meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self.memory = MemoryMeter(str(device))
        self.before = self.peak = self.highest = self.highest_alone = 0
        self._warm: set[str] = set()
        self._left: set[str] = set()  # adapters that left during the step
        self._training_peak = 0  # of the step so far, before it was put aside the last time
        self._guests = 0  # other threads that take memory
        self.alone = True
        self._samples: deque[StepSample] = deque(maxlen=_KEPT)
        self._watch = Stopwatch(str(device))
        self._started: Any = self._watch.mark()
        self._aside: list[tuple[Any, Any]] = []  # from and to when something else was done
        self._unread: Callable[[], StepSample] | None = None  # the sample of the latest step, once its time is known

    def begin(self) -> None:
        """A shared step is about to start."""
        self.memory.restart()
        self.before = self.memory.used()
        self._aside = []
        self._training_peak = 0
        self._left.clear()
        self.alone = self._guests == 0
        self._started = self._watch.mark()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Leave time and memory of evaluations, checkpoints and exports out of the step's."""
        started = self._watch.mark()
        self._training_peak = max(self._training_peak, self.memory.peak())
        try:
            yield
        finally:
            self.highest = max(self.highest, self.memory.peak())
            if not self.memory.on_cuda:  # else what the allocator keeps of it would count as the step's
                self.memory.release()
            self.memory.restart()
            self._aside.append((started, self._watch.mark()))

    @contextlib.contextmanager
    def disturbed(self) -> Iterator[None]:
        """Another thread takes memory meanwhile, for the data of a job say: what a step takes cannot be told."""
        self._guests += 1
        self.alone = False
        try:
            yield
        finally:
            self._guests -= 1

    def end(
        self, job_ids: Iterable[str], lengths: Iterable[int], adapter_bytes: int, *, ahead: int = 0, whole: bool
    ) -> None:
        """The shared step is over.

        Args:
            job_ids: Whose micro-batches it held.
            lengths: Tokens of each of its sequences.
            adapter_bytes: Weights, gradients and moments of all adapters on the device, in the step or not.
            ahead: Tokens that were run forward only, without gradients.
            whole: Whether it ran as composed; one that had to be repeated in parts gives no sample.
        """
        self._read()
        spans = [(self._started, self._watch.mark()), *self._aside]
        self.peak = max(self._training_peak, self.memory.peak())
        self.highest = max(self.highest, self.peak)
        if self.alone:
            self.highest_alone = max(self.highest_alone, self.peak)
        jobs, lengths = set(job_ids), list(lengths)
        if whole and self.alone and jobs <= self._warm:
            squares = sum(length * length for length in lengths)
            known = (sum(lengths), squares, len(jobs)), (self.peak, adapter_bytes, ahead)
            self._unread = lambda: StepSample(*known[0], self._seconds(*spans), *known[1])
        if not self.memory.on_cuda:
            self._read()
        self._warm |= jobs - self._left

    def _seconds(self, whole: tuple[Any, Any], *aside: tuple[Any, Any]) -> float:
        return self._watch.seconds(*whole) - sum(self._watch.seconds(*span) for span in aside)

    def _read(self) -> None:
        """Keep the sample that waits for its time."""
        if self._unread is not None:
            self._samples.append(self._unread())
            self._unread = None

    def forget(self, job_id: str) -> None:
        """An adapter has left: should it come back, its first step is a warm-up again."""
        self._warm.discard(job_id)
        self._left.add(job_id)

    def take(self) -> tuple[StepSample, ...]:
        """The samples since the last call."""
        taken = []
        while self._samples:  # one at a time: the training thread may add some meanwhile
            taken.append(self._samples.popleft())
        return tuple(taken)
