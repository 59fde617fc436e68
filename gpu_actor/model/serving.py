"""How a base model is served: packed where it then gives its own outputs, else one sequence per row."""

from __future__ import annotations

from gpu_actor.contract.errors import BaseModelError
from gpu_actor.contract.messages import one_line
from gpu_actor.model.body import HookedBody
from gpu_actor.model.probe import Probe


def choose_serving(ref: str, body: HookedBody, probe: Probe) -> str | None:
    """Pack a base model if the probe finds that it can be packed, else pad it.

    Args:
        ref: How the jobs name it.
        body: Its hooked body, changed in place.
        probe: What the stock model gives.

    Returns:
        Why it cannot be packed, as a remark for the operator; None where it is packed.

    Raises:
        BaseModelError: It can be served neither way.
    """
    why_not_packed = _try_packed(body, probe)
    if why_not_packed is None:
        return None
    body.pad()
    why_not_padded = probe.difference(body.hidden)
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


def _try_packed(body: HookedBody, probe: Probe) -> str | None:
    """Pack; what the probe has against it, in words."""
    try:
        seen = body.pack()
        probe.run_each(body.hidden)
        seen.check()
        seen.close()
    except Exception as error:
        return one_line(error)
    return probe.difference(body.hidden)
