"""The shared batch: micro-batches of many adapters packed into one row, without padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.batch.pairs import PairTask
from gpu_actor.batch.parcel import Parcel
from gpu_actor.batch.row_tables import RowTables, SegmentRows
from gpu_actor.batch.unpaired import UnpairedTask
from gpu_actor.data.records import IGNORE_INDEX

Tokens = npt.NDArray[np.int32]
_Positions = tuple[npt.NDArray[np.int64], Tokens]  # rows that predict something, and what


@dataclass(frozen=True)
class MicroBatch:
    """A few samples of one adapter that go through the base model together.

    Attributes:
        weights: The adapter; None runs the bare base model.
        sequences: Token ids, one array [length] per sample, two per preference pair.
        labels: Labels of the same lengths, unshifted, -100 where no loss is taken.
        loss_scale: What each token loss is multiplied by: one over the loss tokens of the whole optimizer step. With
            a task, what the loss of each pair or sample is multiplied by: one over those of the step.
        dropout_seeds: Decide the dropout masks, one for each sequence, so that no split of the samples changes a mask;
            None switches dropout off (evaluation).
        task: Set where they are more than samples to imitate: preference pairs, or answers wanted and unwanted.
    """

    weights: AdapterWeights | None
    sequences: Sequence[Tokens]
    labels: Sequence[Tokens]
    loss_scale: float = 1.0
    dropout_seeds: tuple[int, ...] | None = None
    task: PairTask | UnpairedTask | None = None

    @property
    def tokens(self) -> int:
        """Real tokens, prompts included, and both sides of a pair."""
        return sum(len(sequence) for sequence in self.sequences)

    @property
    def inner_scale(self) -> float:
        """What each token loss is multiplied by inside of the sums; what a task makes of them is scaled later."""
        return self.loss_scale if self.task is None else 1.0

    @property
    def dropout(self) -> tuple[tuple[int, int, int], ...] | None:
        """Of each sequence its length, its rows (the same here) and the seed of its mask; None: no dropout."""
        if self.dropout_seeds is None:
            return None
        lengths = [len(sequence) for sequence in self.sequences]
        return tuple(zip(lengths, lengths, self.dropout_seeds, strict=True))

    @property
    def samples(self) -> int:
        """Samples, or pairs: what cannot be split."""
        return len(self.sequences) // self._width

    @property
    def _width(self) -> int:
        return 1 if self.task is None else self.task.width

    def parts(self, count: int, most: int | None = None) -> list[MicroBatch]:
        """The same samples in up to `count` smaller micro-batches or more, whose losses add up to that of the whole.

        Args:
            count: How many parts there are at least, where there are as many samples.
            most: Most tokens of a part (a single sample that is longer excepted); None: any number.
        """
        width = self._width
        lengths = [len(sequence) for sequence in self.sequences]
        tokens = [sum(lengths[start : start + width]) for start in range(0, len(lengths), width)]
        runs = split_samples(tokens, count, most)
        return [self] if len(runs) == 1 else [self._part(run.start, run.stop) for run in runs]

    def _part(self, start: int, end: int) -> MicroBatch:
        places = slice(self._width * start, self._width * end)
        return replace(
            self,
            sequences=self.sequences[places],
            labels=self.labels[places],
            dropout_seeds=None if self.dropout_seeds is None else self.dropout_seeds[places],
            task=self.task and self.task.part(start, end),
        )


@dataclass(frozen=True)
class Segment:
    """The rows [start, end) of a shared batch that one micro-batch occupies.

    Attributes:
        start: Its first row.
        end: One behind its last row.
        weights: The adapter.
        loss_rows: int64 [n], the rows whose next token carries loss.
        targets: int64 [n], those tokens.
        loss_lengths: How many of them belong together, in order: all of them, or with a task each answer's, of pairs
            the chosen and the rejected one's (and the chosen side's prompt, where that is learned).
        loss_scale: As in `MicroBatch`.
        dropout: Of each sequence, in order, its length, its rows (padding included where there is some), and the seed
            of its mask; None: no dropout.
        task: As in `MicroBatch`.
        references: fp64 [samples, answers], log-probabilities under the reference, if there is one: of pairs of the
            chosen and the rejected answer.
    """

    start: int
    end: int
    weights: AdapterWeights | None
    loss_rows: torch.Tensor
    targets: torch.Tensor
    loss_lengths: tuple[int, ...]
    loss_scale: float
    dropout: tuple[tuple[int, int, int], ...] | None
    task: PairTask | UnpairedTask | None = None
    references: torch.Tensor | None = None

    @property
    def inner_scale(self) -> float:
        """As of `MicroBatch`."""
        return self.loss_scale if self.task is None else 1.0

    @property
    def rows(self) -> SegmentRows:
        """Its rows, and what is dropped of them."""
        probability = 0.0 if self.weights is None else self.weights.dropout
        return SegmentRows(self.end - self.start, self.dropout, probability)


@dataclass(frozen=True)
class LossGroups:
    """Which loss rows of a shared batch belong together: the groups of all segments, one behind the other.

    Attributes:
        lengths: int64 [groups].
        scales: fp64 [groups], what each token loss of a group is multiplied by; what a task makes of its sums is
            scaled later.
    """

    lengths: torch.Tensor
    scales: torch.Tensor


@dataclass(frozen=True)
class SharedBatch:
    """Everything one forward needs.

    Attributes:
        input_ids: int64 [1, T], the sequences of all segments one behind the other.
        position_ids: int64 [1, T], starting at 0 in every sequence.
        borders: int32 [sequences + 1], where every sequence starts, and T.
        tables: What is asked about its rows where many adapters are served at once.
        loss_groups: The same of its loss rows.
        lengths: Length of every sequence, in order; they add up to T.
        segments: One per micro-batch, in order; they tile [0, T).
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    borders: torch.Tensor
    tables: RowTables
    loss_groups: LossGroups
    lengths: tuple[int, ...]
    segments: tuple[Segment, ...]

    @property
    def tokens(self) -> int:
        """T, the number of tokens; none of them is padding."""
        return int(self.input_ids.shape[1])


def pack(micro_batches: Sequence[MicroBatch], device: torch.device) -> SharedBatch:
    """Pack micro-batches, in the order given, into one row on `device`."""
    sequences = [sequence for micro_batch in micro_batches for sequence in micro_batch.sequences]
    lengths = tuple(len(sequence) for sequence in sequences)
    parcel = Parcel()
    parcel.add(np.concatenate(sequences).astype(np.int64))
    parcel.add(np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]))
    parcel.add(np.cumsum([0, *lengths], dtype=np.int64))
    groups: list[tuple[int, ...]] = []
    start = 0
    for micro_batch in micro_batches:
        groups.append(_put_losses(micro_batch, start, parcel))
        start += micro_batch.tokens
    for array in RowTables.arrays([_rows(micro_batch) for micro_batch in micro_batches]):
        parcel.add(array)
    parcel.add(np.array([length for lengths in groups for length in lengths], dtype=np.int64))
    parcel.add(np.array([m.inner_scale for m, lengths in zip(micro_batches, groups, strict=True) for _ in lengths]))
    input_ids, position_ids, borders, *of_segments = parcel.send(device)
    segments: list[Segment] = []
    start = 0
    for place, (micro_batch, loss_lengths) in enumerate(zip(micro_batches, groups, strict=True)):
        segments.append(_segment(micro_batch, start, loss_lengths, of_segments[3 * place : 3 * place + 3]))
        start += micro_batch.tokens
    ends, words, group_lengths, group_scales = of_segments[3 * len(micro_batches) :]
    return SharedBatch(
        input_ids=input_ids[None],
        position_ids=position_ids[None],
        borders=borders.to(torch.int32),
        tables=RowTables.arrived(ends, words),
        loss_groups=LossGroups(group_lengths, group_scales),
        lengths=lengths,
        segments=tuple(segments),
    )


def _rows(micro_batch: MicroBatch) -> SegmentRows:
    probability = 0.0 if micro_batch.weights is None else micro_batch.weights.dropout
    return SegmentRows(micro_batch.tokens, micro_batch.dropout, probability)


def _put_losses(micro_batch: MicroBatch, start: int, parcel: Parcel) -> tuple[int, ...]:
    """Add the loss rows, the targets and the references of one segment; returns its `loss_lengths`."""
    task = micro_batch.task
    positions = _loss_positions(micro_batch, start)
    rows = np.concatenate([rows for rows, _ in positions])
    parcel.add(rows)
    parcel.add(np.concatenate([targets for _, targets in positions]).astype(np.int64))
    references = None if task is None or task.references is None else task.references.of(task.numbers)
    parcel.add(np.empty((0, 0)) if references is None else references)
    return (len(rows),) if task is None else tuple(len(rows) for rows, _ in positions)


def _segment(
    micro_batch: MicroBatch, start: int, loss_lengths: tuple[int, ...], tensors: Sequence[torch.Tensor]
) -> Segment:
    task = micro_batch.task
    rows, targets, references = tensors
    return Segment(
        start=start,
        end=start + micro_batch.tokens,
        weights=micro_batch.weights,
        loss_rows=rows,
        targets=targets,
        loss_lengths=loss_lengths,
        loss_scale=micro_batch.loss_scale,
        dropout=micro_batch.dropout,
        task=task,
        references=references if task is not None and task.references is not None else None,
    )


def _loss_positions(micro_batch: MicroBatch, start: int) -> list[_Positions]:
    """What is predicted, and where: the shift of labels happens here, per sequence.

    One entry per sequence; behind each pair another one where the chosen side's prompt is learned.
    """
    task = micro_batch.task
    positions: list[_Positions] = []
    prompt: _Positions | None = None
    for place, (ids, labels) in enumerate(zip(micro_batch.sequences, micro_batch.labels, strict=True)):
        answer = labels[1:] != IGNORE_INDEX
        positions.append((np.flatnonzero(answer) + start, labels[1:][answer]))
        if isinstance(task, PairTask) and task.loss.learns_prompt:
            if place % 2 == 0:
                prompt = (np.flatnonzero(~answer) + start, ids[1:][~answer])
            elif prompt is not None:
                positions.append(prompt)
        start += len(labels)
    return positions


def count_loss_tokens(labels: Sequence[Tokens]) -> int:
    """Tokens that carry loss: the first of a sequence cannot be predicted and never counts."""
    return sum(int(np.count_nonzero(row[1:] != IGNORE_INDEX)) for row in labels)


def split_samples(tokens: Sequence[int], parts: int = 1, most: int | None = None) -> list[range]:
    """Cut a micro-batch into runs of whole samples, none of which has more than `most` tokens.

    A single sample that is longer makes a run of its own.

    Args:
        tokens: Tokens of each sample.
        parts: Cut it into so many parts at least (where it has as many samples).
        most: Most tokens of a part; None: any number.

    Returns:
        The sample numbers of each part, in order; together they are all samples.
    """
    size = math.ceil(len(tokens) / parts)
    runs: list[range] = []
    start = total = 0
    for number, length in enumerate(tokens):
        full = number - start >= size or (most is not None and total + length > most)
        if full and number > start:
            runs.append(range(start, number))
            start, total = number, 0
        total += length
    return [*runs, range(start, len(tokens))]
