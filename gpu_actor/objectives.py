"""Losses, per adapter. The supervised one: cross-entropy of the next token, where labels are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from gpu_actor.batch import SharedBatch
from gpu_actor.footprint import LOSS_CHUNK

Head = Callable[[torch.Tensor], torch.Tensor]  # hidden states [n, hidden] -> logits [n, vocabulary]


def supervised_losses(hidden: torch.Tensor, batch: SharedBatch, head: Head) -> list[torch.Tensor]:
    """The scaled sum of token losses of every segment, in the batch's order.

    The output head runs only on rows that carry loss, and never on more than a chunk of them at once.

    Args:
        hidden: Last hidden states [1, T, hidden].
        batch: Where the labels are.
        head: The model's own output head.

    Returns:
        One scalar (fp32, or fp64 for an fp64 base) per segment: loss_scale * sum of its token losses. Segments
        without labels give 0.
    """
    rows = torch.cat([segment.loss_rows for segment in batch.segments])
    chosen = hidden[0].index_select(0, rows).split([len(segment.loss_rows) for segment in batch.segments])
    return [
        _ChunkedCrossEntropy.apply(own, segment.targets, segment.loss_scale, head)  # type: ignore[no-untyped-call]
        for own, segment in zip(chosen, batch.segments, strict=True)
    ]


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of token losses over chunks of positions; the gradient is computed along, so that no logits are kept."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, scale: float, head: Head) -> torch.Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        wanted = ctx.needs_input_grad[0]
        grad = torch.empty_like(hidden) if wanted else None
        for start in range(0, len(hidden), LOSS_CHUNK):
            part = slice(start, start + LOSS_CHUNK)
            loss, part_grad = _chunk(hidden[part], targets[part], scale, head, wanted)
            total += loss
            if grad is not None and part_grad is not None:
                grad[part] = part_grad
        if grad is not None:
            ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grads[0].to(grad.dtype) * grad, None, None, None


def _chunk(
    hidden: torch.Tensor, targets: torch.Tensor, scale: float, head: Head, wanted: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Loss of one chunk and, if wanted, its gradient with respect to `hidden`."""
    with torch.enable_grad() if wanted else torch.no_grad():
        leaf = hidden.detach().requires_grad_(wanted)
        logits = head(leaf)
    wide = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    log_probabilities = F.log_softmax(wide, dim=-1)
    loss = F.nll_loss(log_probabilities, targets, reduction="sum") * scale
    if not wanted:
        return loss, None
    # d loss / d logits = (softmax - one-hot) * scale, made in place of the log-probabilities
    slope = log_probabilities.exp_()
    slope[torch.arange(len(targets), device=targets.device), targets] -= 1.0
    (grad,) = torch.autograd.grad(logits, leaf, (slope * scale).to(logits.dtype))
    return loss, grad
