"""Token losses through the output head: computed in chunks, summed over groups of positions.

This is the one place where logits exist during training. A position's loss is minus the log-probability of its
target, so a group's sum is minus the log-probability of a text: what every objective is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from gpu_actor.adapters.weights import gradient_scale
from gpu_actor.contract.footprint import LOSS_CHUNK

Head = Callable[[torch.Tensor], torch.Tensor]  # hidden states [n, hidden] -> logits [n, vocabulary]


def summed_token_losses(
    hidden: torch.Tensor, targets: torch.Tensor, lengths: Sequence[int], head: Head, scale: float = 1.0
) -> torch.Tensor:
    """The sum of token losses of each group of positions.

    Args:
        hidden: Hidden states [n, hidden] of the positions, group after group.
        targets: int64 [n], the token that each position should predict.
        lengths: Positions of each group; they add up to n. A group may be empty: its sum is 0.
        head: The model's own output head.
        scale: Multiplies every token loss, inside of the sum.

    Returns:
        [groups], fp32, or fp64 for fp64 hidden states; differentiable with respect to `hidden`, whose gradient is
        `gradient_scale` times too large.
    """
    return _SummedTokenLosses.apply(hidden, targets, tuple(lengths), head, scale)  # type: ignore[no-any-return, no-untyped-call]


class _SummedTokenLosses(torch.autograd.Function):
    """The gradient is computed along with the losses, so that no logits are kept.

    A position enters one sum only, so its gradient is known up to the factor that comes from above.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, lengths: tuple[int, ...], head: Head, scale: float
    ) -> torch.Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        sums = torch.zeros(len(lengths), dtype=wide, device=hidden.device)
        wanted = ctx.needs_input_grad[0]
        grad = torch.empty_like(hidden) if wanted else None
        for start in range(0, len(hidden), LOSS_CHUNK):
            part = slice(start, min(start + LOSS_CHUNK, len(hidden)))
            groups = list(_groups_within(lengths, part.start, part.stop))
            part_grad = _chunk(hidden[part], targets[part], groups, sums, scale, head, wanted)
            if grad is not None and part_grad is not None:
                grad[part] = part_grad
        if grad is not None:
            ctx.save_for_backward(grad)
            ctx.lengths = lengths
        return sums

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        (grad,) = ctx.saved_tensors
        factors = grads[0]
        if len(ctx.lengths) == 1:
            return factors.to(grad.dtype) * grad, None, None, None, None
        repeats = torch.tensor(ctx.lengths, device=grad.device)
        rows = factors.repeat_interleave(repeats, output_size=len(grad))[:, None]
        # the factors stay fp32: rounded to a half-precision base's dtype they would tilt a whole text's gradient
        return (rows * grad).to(grad.dtype), None, None, None, None


def _groups_within(lengths: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, slice]]:
    """The groups that have positions in [start, stop), and those positions counted from `start`."""
    first = 0
    for group, length in enumerate(lengths):
        low, high = max(first, start), min(first + length, stop)
        if low < high:
            yield group, slice(low - start, high - start)
        first += length


def _chunk(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    groups: Sequence[tuple[int, slice]],
    sums: torch.Tensor,
    scale: float,
    head: Head,
    wanted: bool,
) -> torch.Tensor | None:
    """Add one chunk's losses to `sums`; returns, if wanted, their gradient with respect to `hidden`."""
    with torch.enable_grad() if wanted else torch.no_grad():
        leaf = hidden.detach().requires_grad_(wanted)
        logits = head(leaf)
    wide = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    log_probabilities = F.log_softmax(wide, dim=-1)
    for group, rows in groups:
        sums[group] += F.nll_loss(log_probabilities[rows], targets[rows], reduction="sum") * scale
    if not wanted:
        return None
    # d loss / d logits = (softmax - one-hot) * scale, made in place of the log-probabilities
    scale *= gradient_scale(logits.dtype)
    slope = log_probabilities.exp_()
    slope[torch.arange(len(targets), device=targets.device), targets] -= 1.0
    (grad,) = torch.autograd.grad(logits, leaf, (slope * scale).to(logits.dtype))
    return grad
