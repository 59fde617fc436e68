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
from gpu_actor.batch.shared_batch import LossGroups
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


def grouped_token_losses(hidden: torch.Tensor, targets: torch.Tensor, groups: LossGroups, head: Head) -> torch.Tensor:
    """The same sums, each group with a scale of its own, without a kernel per group: what an accelerator wants.

    A group's sum is made of its own positions alone. Its last digits may be others than those of
    `summed_token_losses`, and hang on the company as far as the head's own product does.

    Args:
        hidden: As there.
        targets: As there.
        groups: Their lengths and scales, on the device.
        head: As there.

    Returns:
        As there.
    """
    return _GroupedTokenLosses.apply(hidden, targets, groups, head)  # type: ignore[no-any-return, no-untyped-call]


class _GroupedTokenLosses(torch.autograd.Function):
    """As `_SummedTokenLosses`, the sums made once at the end."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, groups: LossGroups, head: Head) -> torch.Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        scales = _spread(groups.scales.to(wide), groups.lengths, len(targets))
        losses = torch.empty_like(scales)
        wanted = ctx.needs_input_grad[0]
        grad = torch.empty_like(hidden) if wanted else None
        for part in _chunks(len(hidden)):
            log_probabilities, logits, leaf = _log_probabilities(hidden[part], head, wanted)
            losses[part] = F.nll_loss(log_probabilities, targets[part], reduction="none")
            if grad is not None:
                grad[part] = _through_head(log_probabilities, targets[part], scales[part, None], logits, leaf)
        if grad is not None:
            ctx.save_for_backward(grad)
            ctx.lengths = groups.lengths
        return torch.segment_reduce(losses * scales, "sum", lengths=groups.lengths, unsafe=True)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        # the factors stay fp32, as in `_SummedTokenLosses`
        return (_spread(grads[0], ctx.lengths, len(grad))[:, None] * grad).to(grad.dtype), None, None, None


def _spread(values: torch.Tensor, lengths: torch.Tensor, positions: int) -> torch.Tensor:
    """Each group's value at its positions, [groups] -> [positions]: told how many, so that nobody has to count."""
    return values.repeat_interleave(lengths, output_size=positions)


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
        for part in _chunks(len(hidden)):
            log_probabilities, logits, leaf = _log_probabilities(hidden[part], head, wanted)
            for group, rows in _groups_within(lengths, part.start, part.stop):
                chosen = F.nll_loss(log_probabilities[rows], targets[part][rows], reduction="sum")
                sums[group] += chosen * scale
            if grad is not None:
                grad[part] = _through_head(log_probabilities, targets[part], scale, logits, leaf)
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


def _chunks(positions: int) -> Iterator[slice]:
    """Runs of positions whose logits may exist at one time."""
    for start in range(0, positions, LOSS_CHUNK):
        yield slice(start, min(start + LOSS_CHUNK, positions))


def _log_probabilities(
    hidden: torch.Tensor, head: Head, wanted: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One chunk's log-probabilities [n, vocabulary], its logits, and the leaf that these come from."""
    with torch.enable_grad() if wanted else torch.no_grad():
        leaf = hidden.detach().requires_grad_(wanted)
        logits = head(leaf)
    wide = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    return F.log_softmax(wide, dim=-1), logits, leaf


def _through_head(
    log_probabilities: torch.Tensor,
    targets: torch.Tensor,
    scale: float | torch.Tensor,
    logits: torch.Tensor,
    leaf: torch.Tensor,
) -> torch.Tensor:
    """The gradient of one chunk's losses with respect to its hidden states; the log-probabilities are used up.

    d loss / d logits = (softmax - one-hot) * scale, made in place of the log-probabilities.
    """
    slope = log_probabilities.exp_()
    slope[torch.arange(len(targets), device=targets.device), targets] -= 1.0
    scale = scale * gradient_scale(logits.dtype)
    (grad,) = torch.autograd.grad(logits, leaf, (slope * scale).to(logits.dtype))
    return grad
