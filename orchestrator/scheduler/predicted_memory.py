"""The memory that the adapters on each actor can make it use, by the models that the scheduler decides with."""

from __future__ import annotations

from orchestrator.scheduler.estimate import prior_memory
from orchestrator.scheduler.view import ActorView, ClusterView, MemoryModel


def predicted_peaks(view: ClusterView) -> dict[str, float]:
    """Predicted peak bytes by place, of those that host a base model which a job names."""
    peaks: dict[str, float] = {}
    for place in view.actors:
        model = _model(view, place)
        if model is None:
            continue
        sizes = [job.size_on(place.shape.device) for job in view.jobs if job.actor == place.id]
        worst = [size.worst_tokens for size in sizes]
        tokens = sum(worst) if model.token_cap is None else max([model.token_cap, *worst])
        adapters = sum(size.bytes for size in sizes)
        peaks[place.id] = model.fixed_bytes + adapters + model.bytes_per_token * tokens
    return peaks


def _model(view: ClusterView, place: ActorView) -> MemoryModel | None:
    base = place.base_model
    if base is None:
        return None
    if base in place.memories:
        return place.memories[base]
    return prior_memory(view.bases[base], place.shape) if base in view.bases else None
