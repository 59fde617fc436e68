"""The loss of every segment of a shared batch, by its job's own objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from gpu_actor.batch.pairs import PairTask
from gpu_actor.batch.shared_batch import Segment, SharedBatch
from gpu_actor.batch.unpaired import UnpairedTask
from gpu_actor.losses.kto import unpaired_losses
from gpu_actor.losses.preference import PairSums, pair_losses
from gpu_actor.losses.token_losses import Head, grouped_token_losses, summed_token_losses


@dataclass(frozen=True)
class SegmentLoss:
    """What one micro-batch adds to its optimizer step.

    Attributes:
        loss: Scalar (fp32, or fp64 for an fp64 base), differentiable; already a share of the step's loss.
        figures: Further values to log, detached scalars that are shares of the step's mean; none for `sft`.
    """

    loss: torch.Tensor
    figures: Mapping[str, torch.Tensor] = field(default_factory=dict)


def segment_losses(hidden: torch.Tensor, batch: SharedBatch, head: Head, *, by_segment: bool) -> list[SegmentLoss]:
    """The losses of all segments, in the batch's order.

    The output head runs only on rows that carry loss, and never on more than a chunk of them at once.

    Args:
        hidden: Last hidden states [1, T, hidden].
        batch: Where the labels are, and what is to be learned.
        head: The model's own output head.
        by_segment: Run the head for each segment apart, so that no digit of a loss hangs on the company (CPU); else
            once for all, so that its weights are not read again for every small job.
    """
    rows = torch.cat([segment.loss_rows for segment in batch.segments])
    chosen = hidden[0].index_select(0, rows)
    sums = _sums_apart(chosen, batch.segments, head) if by_segment else _sums_together(chosen, batch, head)
    return [_loss(found, segment) for found, segment in zip(sums, batch.segments, strict=True)]


def _sums_apart(hidden: torch.Tensor, segments: Sequence[Segment], head: Head) -> list[torch.Tensor]:
    """The sums of token losses [groups] of each segment."""
    parts = hidden.split([len(segment.loss_rows) for segment in segments])
    return [
        summed_token_losses(states, segment.targets, segment.loss_lengths, head, segment.inner_scale)
        for states, segment in zip(parts, segments, strict=True)
    ]


def _sums_together(hidden: torch.Tensor, batch: SharedBatch, head: Head) -> list[torch.Tensor]:
    """The same with one run of the head."""
    targets = torch.cat([segment.targets for segment in batch.segments])
    sums = grouped_token_losses(hidden, targets, batch.loss_groups, head)
    return list(sums.split([len(segment.loss_lengths) for segment in batch.segments]))


def _loss(sums: torch.Tensor, segment: Segment) -> SegmentLoss:
    if isinstance(segment.task, PairTask):
        return _preference(sums, segment, segment.task)
    if isinstance(segment.task, UnpairedTask):
        return _unpaired(sums, segment, segment.task)
    (loss,) = sums  # loss_scale * sum of the token losses
    return SegmentLoss(loss)


def _preference(token_losses: torch.Tensor, segment: Segment, task: PairTask) -> SegmentLoss:
    """loss_scale * sum of the pair losses + nll_scale * sum of the chosen sides' token losses."""
    sums = _pair_sums(token_losses, segment, task)
    pairs = pair_losses(task.loss, sums)
    loss = pairs.losses.sum() * segment.loss_scale
    figures = {name: values.sum() * segment.loss_scale for name, values in pairs.figures.items()}
    if task.loss.learns_likelihood:
        nll = -(sums.chosen + sums.prompt).sum() * task.nll_scale
        loss = loss + task.loss.nll_weight * nll
        figures["nll_loss"] = nll.detach()
    return SegmentLoss(loss, figures)


def _unpaired(token_losses: torch.Tensor, segment: Segment, task: UnpairedTask) -> SegmentLoss:
    """loss_scale * sum of the answers' losses."""
    log_p = -token_losses
    if segment.references is None:
        raise RuntimeError("a segment of KTO has no reference")
    found = unpaired_losses(task, log_p, segment.references[:, 0].to(log_p.dtype))
    share = len(task.numbers) * segment.loss_scale
    kl = torch.tensor(task.kl.value * share, dtype=log_p.dtype, device=log_p.device)
    return SegmentLoss(found.losses.sum() * segment.loss_scale, {**found.figures, "kl": kl})


def _pair_sums(token_losses: torch.Tensor, segment: Segment, task: PairTask) -> PairSums:
    groups = task.groups
    log_p = -token_losses.view(-1, groups)
    tokens = torch.tensor(segment.loss_lengths, device=log_p.device).to(log_p.dtype).view(-1, groups)
    zero = torch.zeros_like(tokens[:, 0])
    reference = None if segment.references is None else segment.references.to(log_p.dtype)
    return PairSums(
        chosen=log_p[:, 0],
        rejected=log_p[:, 1],
        chosen_tokens=tokens[:, 0],
        rejected_tokens=tokens[:, 1],
        prompt=log_p[:, 2] if groups == 3 else zero,
        reference_chosen=zero if reference is None else reference[:, 0],
        reference_rejected=zero if reference is None else reference[:, 1],
    )


class StepSums:
    """Sums of losses and of the figures that are logged beside them; they stay on the device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, share: SegmentLoss) -> None:
        """Add what one micro-batch gave."""
        for name, value in {"loss": share.loss.detach(), **share.figures}.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    @property
    def loss(self) -> torch.Tensor:
        """The sum of the losses, a scalar on the device; there is at least one."""
        return self._sums["loss"]

    @property
    def names(self) -> tuple[str, ...]:
        """What is summed: the loss, and the figures."""
        return tuple(self._sums)

    def stacked(self) -> torch.Tensor:
        """The sums [names], on the device; there is at least the loss."""
        return torch.stack(list(self._sums.values()))

    def read(self) -> tuple[float, dict[str, float]]:
        """The loss, and the figures by name; waits for the device once."""
        if not self._sums:
            return 0.0, {}
        loss, *figures = self.stacked().tolist()
        return loss, dict(zip(self.names[1:], figures, strict=True))
