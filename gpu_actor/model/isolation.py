"""Do the sequences of a shared batch see each other? Asked directly, of the model as the actor computes with it.

Two runs over the same lengths differ only in what the neighbours and the padding of two watched sequences hold. The
same shapes mean the same kernels, so every bit of the watched hidden states must stay, in any dtype and on any device;
and the gradient of the watched hidden states by the neighbours' embeddings must be exactly zero.

Comparing packed with apart cannot answer this: it needs a tolerance for rounding, in which a leak can hide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gpu_actor.batch.body_inputs import BodyInput
from gpu_actor.batch.shared_batch import MicroBatch, SharedBatch, pack
from gpu_actor.model.body import HookedBody

# Neighbours longer than convolution kernels and the chunks of recurrent layers (64 to 256 tokens), and a short one that
# a convolution sees past. The watched sequences stand at _WATCHED of each micro-batch.
_LONG = 270
_LAYOUT = ((_LONG, 13, 2), (2, 11, 24))
_SHORT_LAYOUT = ((24, 13, 2), (2, 11, 5))  # for the backward, which keeps its activations
_WATCHED = 1
# An outlier is so much larger than every other embedded value, as one channel of large models is (arXiv 2402.17762).
_OUTLIER = 30.0


class Isolation:
    """The question, put to one hooked body in its present way of serving.

    Watched sequences have even token ids, neighbours and changed padding odd ones, so that a hook on the embeddings
    tells them apart in any layout of rows.
    """

    def __init__(self, body: HookedBody, longest: int | None, tolerance: float = 0.0) -> None:
        """Prepare the question.

        Args:
            body: Hooked, packed or padded.
            longest: Tokens of the longest sequence that it can run; None: any number.
            tolerance: Largest change of a watched value, as a share of the largest; 0 asks for every bit.
        """
        self._body = body
        self._longest = longest or _LONG
        self._tolerance = tolerance
        self._vocabulary = body.model.config.get_text_config().vocab_size
        self._embeddings = body.model.get_input_embeddings()

    def breach(self) -> str | None:
        """How sequences see each other, in words; None if they do not."""
        change = self.forward_change()
        if not change <= self._tolerance:
            return (
                f"{self._seen()}: with other neighbours a sequence's hidden states change by {change:.1e} of the "
                f"largest value"
            )
        return self.backward_breach()

    def forward_change(self) -> float:
        """Largest change of a watched value with its neighbours, as a share of the largest; NaN is infinite."""
        with torch.no_grad():
            expected, _ = self._run(_LAYOUT, 0)
            watched, _ = self._run(_LAYOUT, 1)
            changes = [_change(watched, expected)]
            with self._embedded_through(_plant_outlier):
                watched, finite = self._run(_LAYOUT, 2)
            if finite:  # an outlier that overflows says nothing: not a number spreads through masks that multiply by 0
                changes.append(_change(watched, expected))
        return max(changes)

    def backward_breach(self) -> str | None:
        """Whether a watched sequence has a gradient by its neighbours' embeddings, in words; None if it has none.

        This is exact even where experts round a row by the number of rows that they are given.
        """
        embedded: list[tuple[torch.Tensor, torch.Tensor]] = []

        def keep(ids: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
            leaf = output.detach().requires_grad_()
            embedded.append((ids % 2 == 1, leaf))
            return leaf

        with torch.enable_grad(), self._embedded_through(keep):
            watched, _ = self._run(_SHORT_LAYOUT, 1)
            leaves = [leaf for _, leaf in embedded]
            gradients = torch.autograd.grad(watched.float().square().mean(), leaves, allow_unused=True)
        self._body.rest()
        for (neighbours, _), gradient in zip(embedded, gradients, strict=True):
            # not a number comes of an overflow in half precision, times an exact 0
            if gradient is not None and gradient[neighbours].nan_to_num(nan=0.0).any():
                return f"{self._seen()}: the gradient of one reaches another"
        return None

    def _run(self, layout: tuple[tuple[int, ...], ...], content: int) -> tuple[torch.Tensor, bool]:
        """Hidden states [n, hidden] of the watched sequences among neighbours of this content; whether all are finite.

        Content 0 leaves the padding as it is, others fill it.
        """
        batch = self._batch(layout, content)
        change = _fill_padding(content, self._vocabulary) if content else None
        hidden = self._body.hidden(batch, change)[0].split(list(batch.lengths))
        width = len(layout[0])
        watched = torch.cat([part for place, part in enumerate(hidden) if place % width == _WATCHED])
        return watched, bool(torch.isfinite(torch.cat(hidden)).all())

    def _batch(self, layout: tuple[tuple[int, ...], ...], content: int) -> SharedBatch:
        watched, neighbours = np.random.default_rng(0), np.random.default_rng(1 + content)
        micro_batches = []
        for lengths in layout:
            ids = [
                2 * watched.integers(0, (self._vocabulary + 1) // 2, min(length, self._longest), dtype=np.int32)
                if place == _WATCHED
                else 1 + 2 * neighbours.integers(0, self._vocabulary // 2, min(length, self._longest), dtype=np.int32)
                for place, length in enumerate(lengths)
            ]
            micro_batches.append(MicroBatch(None, ids, ids))
        return pack(micro_batches, self._body.device)

    @contextmanager
    def _embedded_through(self, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Iterator[None]:
        """Token ids and what they were embedded to go through `change` for a while."""

        def hook(_: Any, args: tuple[Any, ...], named: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
            return change(args[0] if args else named["input"], output)

        handle = self._embeddings.register_forward_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _seen(self) -> str:
        return f"sequences see each other when {'packed' if self._body.packed else 'padded'}"


def _plant_outlier(ids: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
    """One channel of every neighbour becomes an outlier."""
    planted = embedded.clone()
    planted[..., 0] = torch.where(ids % 2 == 1, _OUTLIER * embedded.abs().max(), embedded[..., 0])
    return planted


def _fill_padding(content: int, vocabulary: int) -> Callable[[BodyInput], BodyInput]:
    """A change of a forward's input: random odd token ids in its padding."""

    def fill(given: BodyInput) -> BodyInput:
        if given.attention_mask is None:
            return given
        random = np.random.default_rng(content)
        other = 1 + 2 * random.integers(0, vocabulary // 2, tuple(given.input_ids.shape), dtype=np.int64)
        filling = torch.from_numpy(other).to(given.input_ids.device)
        return replace(given, input_ids=torch.where(given.attention_mask, given.input_ids, filling))

    return fill


def _change(watched: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference as a share of the largest value: 0 if every bit is the same, infinite for NaN."""
    if torch.equal(watched, expected):
        return 0.0
    share = ((watched.double() - expected.double()).abs().max() / expected.abs().max().double().clamp(min=1e-6)).item()
    return share if share == share else float("inf")
