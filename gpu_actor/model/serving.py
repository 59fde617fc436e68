"""How a base model is served: packed where that gives its own outputs and no sequence sees another, else in rows."""

from __future__ import annotations

import logging
import time

from gpu_actor.contract.description import BaseDescription
from gpu_actor.contract.errors import BaseModelError
from gpu_actor.contract.messages import one_line
from gpu_actor.model.attention import UnsupportedAttentionError
from gpu_actor.model.body import HookedBody
from gpu_actor.model.freeze import freeze
from gpu_actor.model.isolation import Isolation
from gpu_actor.model.probe import Probe
from gpu_actor.model.small_copy import small_copy

logger = logging.getLogger(__name__)

# What a mixture of experts may change by in fp64. Rounding leaves 1e-12 at most after dozens of layers; what a sequence
# takes over from another one is a part of a hidden state, which decays over a few tokens, not to 1e-9 of itself.
_FP64_ROUNDING = 1e-9


class _NoSmallCopyError(Exception):
    """The family's code builds no small model, so a mixture cannot be asked."""


def choose_serving(ref: str, body: HookedBody, probe: Probe, description: BaseDescription) -> str | None:
    """Pack a base model if it is proven that it can be packed, else pad it.

    Args:
        ref: How the jobs name it.
        body: Its hooked body, changed in place.
        probe: What the stock model gives.
        description: Its sizes.

    Returns:
        Why it cannot be packed, as a remark for the operator; None where it is packed.

    Raises:
        BaseModelError: It can be served neither way.
    """
    start = time.perf_counter()
    why_not_packed = _try_packed(body, probe, description)
    logger.debug("%s: asked whether it can be packed in %.0f ms", ref, 1e3 * (time.perf_counter() - start))
    if why_not_packed is None:
        return None
    body.pad()
    why_not_padded = _try_padded(body, probe, description)
    model_type = body.model.config.model_type
    if why_not_padded is not None:
        raise BaseModelError(
            f"base_model: {ref}: a {model_type} model cannot be served. Packed into one row: {why_not_packed}; one "
            f"sequence per row: {why_not_padded}. Use another base model"
        )
    return (
        f"sequences of a {model_type} model cannot be packed ({why_not_packed}); they run one per row, "
        f"padded, in one forward per micro-batch, which is exact but slower"
    )


def _try_packed(body: HookedBody, probe: Probe, description: BaseDescription) -> str | None:
    """Pack; what speaks against it, in words."""
    try:
        seen = body.pack()
        probe.run_each(body.hidden)
        seen.check()
        seen.close()
        return probe.difference(body.hidden) or _breach(body, description)
    except _NoSmallCopyError as error:
        return f"whether sequences see each other when packed cannot be asked: {error}"
    except UnsupportedAttentionError as error:
        return str(error)
    except Exception as error:
        return _stumble(error)


def _try_padded(body: HookedBody, probe: Probe, description: BaseDescription) -> str | None:
    """What speaks against the rows of a padded body, in words."""
    try:
        return probe.difference(body.hidden) or _breach(body, description)
    except _NoSmallCopyError:  # rows that no kernel mixes; their backward was asked exactly
        return None
    except Exception as error:
        return _stumble(error)


def _stumble(error: Exception) -> str:
    """That the family's code raised an error, whose text says nothing to those who do not know the code."""
    logger.info("the code of a base model raised an error: %s", one_line(error), exc_info=error)
    return "its code does not run so"


def _breach(body: HookedBody, description: BaseDescription) -> str | None:
    """How sequences see each other in the body's present way of serving, in words; None if they do not.

    Raises:
        _NoSmallCopyError: A mixture of experts changed with its neighbours, and whether by rounding cannot be found.
    """
    isolation = Isolation(body, description.longest_sequence)
    if not description.experts:
        return isolation.breach()
    return isolation.backward_breach() or (
        _breach_of_small_copy(body, description)
        if isolation.forward_change()
        else None  # experts may round by their rows
    )


def _breach_of_small_copy(body: HookedBody, description: BaseDescription) -> str | None:
    """The same question of a small copy in fp64, served in the same way."""
    try:
        model = small_copy(body.model)
        freeze(model)
        small = HookedBody(model)
        if body.packed:
            small.pack().close()
        isolation = Isolation(small, description.longest_sequence, _FP64_ROUNDING)
        change = isolation.forward_change()
    except Exception as error:
        raise _NoSmallCopyError(f"its experts round, and no small copy of it runs ({one_line(error)})") from error
    return None if change <= _FP64_ROUNDING else isolation.breach()
