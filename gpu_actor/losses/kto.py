"""The loss of KTO (arXiv 2402.01306, equations 7 and 8): single answers, each wanted or not. Names are TRL's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gpu_actor.batch.unpaired import UnpairedTask


@dataclass(frozen=True)
class UnpairedLosses:
    """The losses of n answers, and what is logged of them.

    Attributes:
        losses: [n], differentiable; an optimizer step minimises their mean.
        figures: TRL's names -> detached scalars, shares of the step's means over its wanted or unwanted answers; a
            figure of answers that the step has none of is not there. `kl` is not among them.
    """

    losses: torch.Tensor
    figures: Mapping[str, torch.Tensor]


def unpaired_losses(task: UnpairedTask, log_p: torch.Tensor, reference: torch.Tensor) -> UnpairedLosses:
    """The loss of every answer: how far it is from being better, or worse, than the policy's own drift.

    Args:
        task: Settings, what is wanted, and the KL.
        log_p: [n], log-probability of each answer, summed over its tokens.
        reference: [n], the same under the reference.
    """
    loss, wanted = task.loss, torch.tensor(task.desirable, device=log_p.device)
    ratios = log_p - reference
    above = torch.where(wanted, 1.0, -1.0).to(log_p.dtype) * loss.beta * (ratios - task.kl.value)
    weights = torch.where(wanted, loss.desirable_weight, loss.undesirable_weight).to(log_p.dtype)
    rewards = loss.beta * ratios.detach()
    figures: dict[str, torch.Tensor] = {}
    for name, chosen, scale in (
        ("chosen", wanted, task.desirable_scale),
        ("rejected", ~wanted, task.undesirable_scale),
    ):
        if scale:
            figures[f"rewards/{name}"] = (rewards * chosen).sum() * scale
            figures[f"logps/{name}"] = (log_p.detach() * chosen).sum() * scale
    if task.desirable_scale and task.undesirable_scale:
        figures["rewards/margins"] = figures["rewards/chosen"] - figures["rewards/rejected"]
    return UnpairedLosses(weights * torch.sigmoid(-above), figures)
