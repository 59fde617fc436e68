"""How a shared batch goes through the body of a base model: in one forward, or in several.

A base whose sequences can be packed takes the whole row at once. One that cannot takes every micro-batch in a forward
of its own, one sequence per row, padded on the right to the longest of them. So an adapter's arithmetic has nothing
of its neighbours', the padding is what `Trainer` would have, and an accelerator still gets one product per layer for
the micro-batch (one forward per sequence has no padding, but launches as many small products as there are sequences).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from gpu_actor.batch.row_tables import RowTables
from gpu_actor.batch.shared_batch import Segment, SharedBatch


@dataclass(frozen=True)
class BodyInput:
    """What one forward of the body is given.

    Attributes:
        input_ids: int64 [1, T] of a packed row, or [B, L] of padded rows.
        segments: They tile the rows of the flattened input, padding included.
        lengths: Length of every sequence.
        position_ids: int64 [1, T]; None for padded rows, whose positions the model counts itself.
        attention_mask: bool [B, L], False in the padding; None for a packed row.
        borders: int32 [sequences + 1], where each starts in a packed row, and T; None where nobody asks.
        tables: Of the rows, where they are those of the shared batch.
    """

    input_ids: torch.Tensor
    segments: tuple[Segment, ...]
    lengths: tuple[int, ...]
    position_ids: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    borders: torch.Tensor | None = None
    tables: RowTables | None = None

    def real(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, L, n] -> those of the tokens that are no padding, packed: [1, T, n]."""
        return hidden if self.attention_mask is None else hidden[self.attention_mask][None]


def whole(batch: SharedBatch) -> list[BodyInput]:
    """The whole shared batch as one packed row."""
    return [
        BodyInput(
            batch.input_ids,
            batch.segments,
            batch.lengths,
            batch.position_ids,
            borders=batch.borders,
            tables=batch.tables,
        )
    ]


def packed_by_segment(batch: SharedBatch) -> list[BodyInput]:
    """Each micro-batch as a packed row of its own."""
    return [
        BodyInput(
            batch.input_ids[:, segment.start : segment.end],
            (replace(segment, start=0, end=segment.end - segment.start),),
            lengths,
            batch.position_ids[:, segment.start : segment.end],
        )
        for segment, lengths in _segments_with_lengths(batch)
    ]


def padded_by_segment(batch: SharedBatch) -> list[BodyInput]:
    """Each micro-batch as rows of its own, one sequence per row."""
    inputs = []
    for segment, lengths in _segments_with_lengths(batch):
        sequences = batch.input_ids[0, segment.start : segment.end].split(list(lengths))
        input_ids = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True)
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        mask = places[None] < torch.tensor(lengths, device=input_ids.device)[:, None]
        width = input_ids.shape[1]
        dropout = segment.dropout and tuple((length, width, seed) for length, _, seed in segment.dropout)
        padded = replace(segment, start=0, end=input_ids.numel(), dropout=dropout)
        inputs.append(BodyInput(input_ids, (padded,), lengths, attention_mask=mask))
    return inputs


def _segments_with_lengths(batch: SharedBatch) -> Iterator[tuple[Segment, tuple[int, ...]]]:
    """Every segment and the lengths of its sequences."""
    place = 0
    for segment in batch.segments:
        first, tokens = place, 0
        while tokens < segment.end - segment.start:
            tokens += batch.lengths[place]
            place += 1
        yield segment, batch.lengths[first:place]
