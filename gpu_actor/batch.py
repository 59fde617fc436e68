"""The shared batch: micro-batches of many adapters packed into one row, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gpu_actor.adapter_weights import AdapterWeights
from gpu_actor.samples import IGNORE_INDEX

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class MicroBatch:
    """A few samples of one adapter that go through the base model together.

    Attributes:
        weights: The adapter; None runs the bare base model.
        sequences: Token ids, one array [length] per sample.
        labels: Labels of the same lengths, unshifted, -100 where no loss is taken.
        loss_scale: What each token loss is multiplied by: one over the loss tokens of the whole optimizer step.
        dropout_seed: Decides the dropout masks; None switches dropout off (evaluation).
    """

    weights: AdapterWeights | None
    sequences: Sequence[Tokens]
    labels: Sequence[Tokens]
    loss_scale: float = 1.0
    dropout_seed: int | None = None

    @property
    def tokens(self) -> int:
        """Real tokens, prompts included."""
        return sum(len(sequence) for sequence in self.sequences)


@dataclass(frozen=True)
class Segment:
    """The rows [start, end) of a shared batch that one micro-batch occupies.

    `loss_rows` are the rows whose next token carries loss (int64), `targets` those tokens (int64).
    """

    start: int
    end: int
    weights: AdapterWeights | None
    loss_rows: torch.Tensor
    targets: torch.Tensor
    loss_scale: float
    dropout_seed: int | None


@dataclass(frozen=True)
class SharedBatch:
    """Everything one forward needs.

    Attributes:
        input_ids: int64 [1, T], the sequences of all segments one behind the other.
        position_ids: int64 [1, T], starting at 0 in every sequence.
        lengths: Length of every sequence, in order; they add up to T.
        segments: One per micro-batch, in order; they tile [0, T).
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
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
    segments: list[Segment] = []
    start = 0
    for micro_batch in micro_batches:
        rows, targets = _loss_positions(micro_batch, start)
        segments.append(
            Segment(
                start=start,
                end=start + micro_batch.tokens,
                weights=micro_batch.weights,
                loss_rows=rows.to(device),
                targets=targets.to(device),
                loss_scale=micro_batch.loss_scale,
                dropout_seed=micro_batch.dropout_seed,
            )
        )
        start += micro_batch.tokens
    input_ids = np.concatenate(sequences).astype(np.int64)
    position_ids = np.concatenate([np.arange(length, dtype=np.int64) for length in lengths])
    return SharedBatch(
        input_ids=torch.from_numpy(input_ids)[None].to(device),
        position_ids=torch.from_numpy(position_ids)[None].to(device),
        lengths=lengths,
        segments=tuple(segments),
    )


def _loss_positions(micro_batch: MicroBatch, start: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that predict a labelled token, and those tokens: the shift of labels happens here, per sequence."""
    rows: list[npt.NDArray[np.int64]] = []
    targets: list[Tokens] = []
    for labels in micro_batch.labels:
        shifted = labels[1:]
        found = np.flatnonzero(shifted != IGNORE_INDEX)
        rows.append(found + start)
        targets.append(shifted[found])
        start += len(labels)
    return torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.concatenate(targets).astype(np.int64))


def count_loss_tokens(labels: Sequence[Tokens]) -> int:
    """Tokens that carry loss: the first of a sequence cannot be predicted and never counts."""
    return sum(int(np.count_nonzero(row[1:] != IGNORE_INDEX)) for row in labels)
