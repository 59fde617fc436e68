"""Keys and values of the tokens that were computed: a decode step then runs one token per sequence.

They are kept by the number of the attention call within a forward, which is the same in every forward of a model. So
nothing of a family is known here, and layers that share a module keep apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from gpu_actor.model.attention import capped_attention

_ROOM = 64  # tokens that the cache grows by at least


class Prefill:
    """Notes the keys and values of whole sequences in a packed row, whose attention is computed as in training."""

    def __init__(self, lengths: Sequence[int]) -> None:
        """Nothing is noted yet.

        Args:
            lengths: Of the sequences.
        """
        self.lengths = list(lengths)
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: float | int | None) -> None:
        """Note key and value [1, key-value heads, T, size]; the attention over `query` is left to the caller."""
        del query
        self.calls.append((key, value))


class KeyValueCache:
    """Rows of keys and values, one per sequence that is being answered, each as long as its sequence.

    Attributes:
        lengths: Tokens of each row.
    """

    def __init__(self, device: torch.device) -> None:
        """No row yet."""
        self._device = device
        self.lengths: list[int] = []
        self._calls: list[tuple[torch.Tensor, torch.Tensor]] = []  # [rows, key-value heads, room, size] each
        self._next = 0
        self._masks: dict[int | None, torch.Tensor | None] = {}

    def join(self, prefill: Prefill) -> None:
        """Append the sequences of a prefill as rows."""
        lengths = [*self.lengths, *prefill.lengths]
        room = max(max(lengths), self._room)
        if not self.lengths:
            self._calls = [(_no_rows(key), _no_rows(value)) for key, value in prefill.calls]
        self._calls = [
            (_joined(keys, key, prefill.lengths, room), _joined(values, value, prefill.lengths, room))
            for (keys, values), (key, value) in zip(self._calls, prefill.calls, strict=True)
        ]
        self.lengths = lengths

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        self.lengths = [self.lengths[row] for row in rows]
        if not rows:
            self._calls = []
            return
        index = torch.tensor(rows, device=self._device)
        self._calls = [(keys[index], values[index]) for keys, values in self._calls]

    def begin(self) -> None:
        """A forward of one further token per row starts."""
        self._next = 0
        self._longest = max(self.lengths) + 1
        if self._longest > self._room:
            more = max(_ROOM, self._room // 2)
            self._calls = [(F.pad(k, (0, 0, 0, more)), F.pad(v, (0, 0, 0, more))) for k, v in self._calls]
        self._rows = torch.arange(len(self.lengths), device=self._device)
        self._places = torch.tensor(self.lengths, device=self._device)
        self._masks = {}
        self.lengths = [length + 1 for length in self.lengths]

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        sliding_window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Attention of one further token per row over all tokens of that row.

        Args:
            query: [1, heads, rows, size].
            key: [1, key-value heads, rows, size], of the same tokens; it is appended.
            value: [1, key-value heads, rows, value size].
            scaling: Factor on the scores; None is 1 / sqrt(size).
            sliding_window: A query sees this many latest positions, itself included.
            softcap: Scores go through softcap * tanh(score / softcap).

        Returns:
            [1, rows, heads, value size].
        """
        keys, values = self._calls[self._next]
        self._next += 1
        keys[self._rows, :, self._places] = key[0].transpose(0, 1)
        values[self._rows, :, self._places] = value[0].transpose(0, 1)
        keys, values = keys[:, :, : self._longest], values[:, :, : self._longest]
        heads, rows = query.shape[1:3]
        # the heads that share a key-value head are its queries: one product for all of them
        grouped = query[0].transpose(0, 1).reshape(rows, keys.shape[1], heads // keys.shape[1], -1)
        mask = self._mask(sliding_window)
        if softcap is None:
            out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scaling)
        else:
            out = capped_attention(grouped, keys, values, scaling, mask, softcap)
        return out.reshape(1, rows, heads, -1)

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token of one row; 0 while there is no row."""
        return sum(part[0, :, 0].numel() * part.element_size() for pair in self._calls for part in pair if part.numel())

    @property
    def _room(self) -> int:
        return self._calls[0][0].shape[2] if self._calls else 0

    def _mask(self, window: int | None) -> torch.Tensor | None:
        """bool [rows, 1, 1, longest]: what each row's new token sees; None: everything."""
        if window not in self._masks:
            every = window is None or window >= self._longest
            if every and min(self.lengths) == self._longest:
                self._masks[window] = None
            else:
                behind = self._places[:, None] - torch.arange(self._longest, device=self._device)
                seen = (behind >= 0) & (behind < (self._longest if window is None else window))
                self._masks[window] = seen[:, None, None]
        return self._masks[window]


def _no_rows(packed: torch.Tensor) -> torch.Tensor:
    """Rows for the sequences of a packed row [1, heads, T, size], none yet: [0, heads, 0, size]."""
    return packed.new_empty(0, packed.shape[1], 0, packed.shape[3])


def _joined(old: torch.Tensor, packed: torch.Tensor, lengths: Sequence[int], room: int) -> torch.Tensor:
    """Old rows [rows, heads, any, size] and the sequences of a packed row [1, heads, T, size], all `room` long."""
    count, heads, length, size = old.shape
    rows = packed.new_zeros(count + len(lengths), heads, room, size)
    rows[:count, :, :length] = old
    for row, part in enumerate(packed[0].split(list(lengths), dim=1), start=count):
        rows[row, :, : part.shape[1]] = part
    return rows
