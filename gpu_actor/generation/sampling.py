"""The choice of a token from logits. What a seed chooses depends on seed, place and logits alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gpu_actor.contract.questions import Sampling


def choose(logits: torch.Tensor, wanted: Sequence[tuple[Sampling, int]]) -> list[tuple[int, float]]:
    """Choose one token per row.

    Args:
        logits: [rows, vocabulary], of any floating type.
        wanted: Of each row, how to choose, and the token's place in its answer.

    Returns:
        Of each row the token, and its log-probability under the logits as they are, natural logarithm.
    """
    logits = logits.float()
    chosen = torch.stack([_pick(row, *how) for row, how in zip(logits, wanted, strict=True)])
    log_probabilities = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
    both = torch.stack([chosen.double(), log_probabilities.double()], dim=1).tolist()
    return [(int(token), value) for token, value in both]


def _pick(logits: torch.Tensor, sampling: Sampling, place: int) -> torch.Tensor:
    """logits [vocabulary] -> a token, int64 []."""
    if sampling.temperature == 0:
        return logits.argmax()
    total = filtered(logits[None], sampling)[0].double().softmax(-1).cumsum(-1)
    # a fresh generator per token: the place alone says which number is drawn, not what was drawn by others before
    drawn = np.random.default_rng([sampling.seed, place]).random() * total[-1]
    return torch.searchsorted(total, drawn[None], right=True)[0].clamp(max=len(total) - 1)


def filtered(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Logits [rows, vocabulary] as transformers samples from them: tempered, -inf where a filter excludes a token."""
    ids = logits.new_empty((len(logits), 0), dtype=torch.long)  # the warpers read none
    logits = TemperatureLogitsWarper(sampling.temperature)(ids, logits)
    if sampling.top_k is not None:
        logits = TopKLogitsWarper(sampling.top_k)(ids, logits)
    if sampling.top_p is not None and sampling.top_p < 1:
        logits = TopPLogitsWarper(sampling.top_p)(ids, logits)
    return logits
