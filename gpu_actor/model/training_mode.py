"""Whether a base model computes something else in training mode, in which `Trainer` runs it, and what follows."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from gpu_actor.contract.messages import one_line
from gpu_actor.model.freeze import freeze
from gpu_actor.model.small_copy import small_copy

logger = logging.getLogger(__name__)

_MOST_PARAMETERS = 50_000_000  # of a small copy: 400 MB in fp64
_LENGTH = 19


def follow_training_mode(model: Any) -> str | None:
    """Put a frozen model into training mode where it then computes something else, always the same.

    A model whose training mode draws random numbers (a router's jitter) or changes its own state stays as it is:
    then an adapter would depend on who else is in the batch.

    Args:
        model: Frozen and without dropout; its modes are changed in place.

    Returns:
        A remark for the operator; None where both modes compute the same, to the bit.
    """
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            expected = _logits(model)
            if not torch.equal(_logits(model), expected):  # no comparison can be made; the probe tolerates rounding
                return None
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            model.train()
            trained, again = _logits(model), _logits(model)
            moved = [name for name, buffer in model.named_buffers() if not torch.equal(buffer, buffers[name])]
        except Exception as error:
            _restore(modes)
            return f"it was not compared with its training mode, in which Trainer runs it ({one_line(error)})"
    if not moved and torch.equal(trained, again):
        if torch.equal(trained, expected):
            _restore(modes)
            return None
        return (
            f"its training mode computes other logits than its evaluation mode (by {_share(trained, expected)} of the "
            f"largest); it is served in training mode, as Trainer trains it, evaluations included"
        )
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    _restore(modes)
    why = f"changes its own state ({moved[0]})" if moved else "draws random numbers"
    return (
        f"its training mode, in which Trainer runs it, {why} and computes other logits (by "
        f"{_share(trained, expected)} of the largest); it is served in evaluation mode, where adapters differ"
    )


def foresee_training_mode(model: Any) -> str | None:
    """What `follow_training_mode` will say of a model, by a small random copy: before anybody has its weights.

    Args:
        model: As its configuration makes it, on the meta device.

    Returns:
        The remark, with the copy's figures; None where both modes compute the same, or the family has no small copy:
        then the actor that loads the model is the first to know.
    """
    try:
        small = small_copy(model, most=_MOST_PARAMETERS)
        freeze(small)
        remark = follow_training_mode(small)
    except Exception as error:
        logger.debug("no small copy was asked for its training mode: %s", one_line(error))
        return None
    return remark and f"by a small random copy: {remark}"


def _logits(model: Any) -> torch.Tensor:
    """Logits [length, vocabulary] of one short random sequence."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = np.random.default_rng(0).integers(0, vocabulary, (1, _LENGTH), dtype=np.int64)
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(ids).to(next(model.parameters()).device), use_cache=False).logits[0]  # type: ignore[no-any-return]


def _restore(modes: dict[Any, bool]) -> None:
    for module, training in modes.items():
        module.training = training


def _share(values: torch.Tensor, expected: torch.Tensor) -> str:
    """The largest difference, as a share of the largest expected value."""
    return f"{((values - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item():.1e}"
