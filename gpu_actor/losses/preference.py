"""Preference losses: small functions of the log-probabilities of a chosen and a rejected answer.

DPO (arXiv 2305.18290), with the losses of IPO (arXiv 2310.12036, averaged over tokens as its authors do) and of
SLiC's hinge (arXiv 2305.10425); CPO (arXiv 2401.08417); ORPO (arXiv 2403.07691); SimPO (arXiv 2405.14734). Names and
conventions are TRL's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from gpu_actor.batch.pairs import PreferenceLoss


@dataclass(frozen=True)
class PairSums:
    """What a forward says about n pairs. All tensors are [n], of the losses' dtype.

    Attributes:
        chosen: Log-probability of the chosen answer, summed over its tokens.
        rejected: The same of the rejected answer.
        chosen_tokens: How many tokens the chosen answer has.
        rejected_tokens: How many tokens the rejected answer has.
        prompt: Log-probability of the chosen side's prompt; zero unless the objective learns prompts.
        reference_chosen: `chosen` under the reference; zero for objectives without one.
        reference_rejected: `rejected` under the reference.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor
    prompt: torch.Tensor
    reference_chosen: torch.Tensor
    reference_rejected: torch.Tensor


@dataclass(frozen=True)
class PairLosses:
    """The losses of n pairs, and what is logged of them.

    Attributes:
        losses: [n], differentiable; an optimizer step minimises their mean.
        figures: TRL's names -> [n], detached; a step logs their means.
    """

    losses: torch.Tensor
    figures: Mapping[str, torch.Tensor]


def pair_losses(loss: PreferenceLoss, sums: PairSums) -> PairLosses:
    """The preference term of every pair; the likelihood term of CPO and ORPO is not in it."""
    return {"dpo": _dpo, "cpo": _cpo, "orpo": _orpo, "simpo": _simpo}[loss.objective](loss, sums)


def _dpo(loss: PreferenceLoss, sums: PairSums) -> PairLosses:
    chosen, rejected = sums.chosen - sums.reference_chosen, sums.rejected - sums.reference_rejected
    if loss.loss_type == "ipo":
        difference = chosen / sums.chosen_tokens - rejected / sums.rejected_tokens
    else:
        difference = chosen - rejected
    return PairLosses(
        _compared(loss, difference), _figures(loss.beta * chosen, loss.beta * rejected, sums.chosen, sums.rejected)
    )


def _cpo(loss: PreferenceLoss, sums: PairSums) -> PairLosses:
    chosen, rejected = sums.chosen, sums.rejected
    if loss.loss_type == "ipo":
        chosen, rejected = chosen / sums.chosen_tokens, rejected / sums.rejected_tokens
    return PairLosses(
        _compared(loss, chosen - rejected), _figures(loss.beta * chosen, loss.beta * rejected, chosen, rejected)
    )


def _orpo(loss: PreferenceLoss, sums: PairSums) -> PairLosses:
    """-beta * log sigmoid(log odds ratio), of the mean log-probability of a token (equations 4 and 7)."""
    chosen, rejected = sums.chosen / sums.chosen_tokens, sums.rejected / sums.rejected_tokens
    log_odds = (chosen - rejected) - (_log_of_rest(chosen) - _log_of_rest(rejected))
    ratio = F.logsigmoid(log_odds)
    figures = _figures(loss.beta * chosen, loss.beta * rejected, chosen, rejected)
    return PairLosses(
        -loss.beta * ratio, {**figures, "log_odds_ratio": ratio.detach(), "log_odds_chosen": log_odds.detach()}
    )


def _simpo(loss: PreferenceLoss, sums: PairSums) -> PairLosses:
    """The mean log-probability of a token is the reward; the chosen answer's is to be larger by gamma (equation 6)."""
    chosen, rejected = sums.chosen / sums.chosen_tokens, sums.rejected / sums.rejected_tokens
    return PairLosses(
        _compared(loss, chosen - rejected - loss.gamma / loss.beta),
        _figures(loss.beta * chosen, loss.beta * rejected, chosen, rejected),
    )


def _compared(loss: PreferenceLoss, difference: torch.Tensor) -> torch.Tensor:
    """The loss of `difference`, how much more the policy prefers the chosen answers, [n] -> [n]."""
    if loss.loss_type == "hinge":
        return torch.relu(1 - loss.beta * difference)
    if loss.loss_type == "ipo":
        return (difference - 1 / (2 * loss.beta)) ** 2
    # label_smoothing is the probability that a label is flipped ("conservative" DPO; TRL's CPO has the same formula)
    kept = -(1 - loss.label_smoothing) * F.logsigmoid(loss.beta * difference)
    return kept - loss.label_smoothing * F.logsigmoid(-loss.beta * difference)


def _log_of_rest(log_p: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(log_p)) without cancellation; a probability of exactly 1 is taken as the next one below it."""
    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).eps)
    return torch.where(log_p < -math.log(2), torch.log1p(-torch.exp(log_p)), torch.log(-torch.expm1(log_p)))


def _figures(
    chosen_rewards: torch.Tensor,
    rejected_rewards: torch.Tensor,
    chosen_logps: torch.Tensor,
    rejected_logps: torch.Tensor,
) -> dict[str, torch.Tensor]:
    chosen, rejected = chosen_rewards.detach(), rejected_rewards.detach()
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
        "rewards/margins": chosen - rejected,
        "logps/chosen": chosen_logps.detach(),
        "logps/rejected": rejected_logps.detach(),
    }
