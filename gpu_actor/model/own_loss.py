"""Whether a base model's own loss is that of the next token, which `Trainer` would minimise and Loray does."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from gpu_actor.contract.errors import BaseModelError
from gpu_actor.contract.messages import one_line

logger = logging.getLogger(__name__)

_LENGTH = 19
_CLEARLY = 10.0  # times nearer to the one loss than to the other


def check_own_loss(ref: str, model: Any) -> None:
    """Refuse a model whose own loss compares each label with the logits in its own place.

    The decoders of encoder-decoder models are so (`BartForCausalLM`): with ordinary labels `Trainer` would teach them
    to repeat what they read, and what Loray trains would be another adapter.

    Args:
        ref: How the jobs name it.
        model: Loaded and frozen. One that takes no labels is not asked: `Trainer` has no loss of it either.

    Raises:
        BaseModelError: It is such a model.
    """
    vocabulary = model.config.get_text_config().vocab_size
    ids = np.random.default_rng(7).integers(0, vocabulary, (1, _LENGTH))
    tokens = torch.from_numpy(ids).to(next(model.parameters()).device)
    try:
        with torch.no_grad():
            output = model(input_ids=tokens, labels=tokens, use_cache=False)
        own, logits = float(output.loss), output.logits[0].float()
    except Exception as error:
        logger.debug("%s: its own loss was not compared: %s", ref, one_line(error))
        return
    from_next = abs(own - float(cross_entropy(logits[:-1], tokens[0, 1:])))
    from_same = abs(own - float(cross_entropy(logits, tokens[0])))
    if _CLEARLY * from_same < from_next:
        raise BaseModelError(
            f"base_model: {ref}: the own loss of a {model.config.model_type} model compares each token with the logits "
            f"in its own place and not with those before it, so that Trainer would teach it to repeat what it reads. "
            f"Use a base model that is a decoder of its own"
        )
