"""Freeze a base model: no gradients, no dropout, gradient checkpointing on request."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def freeze(model: Any, *, gradient_checkpointing: bool = False) -> list[str]:
    """Freeze a model in place.

    Returns:
        Remarks for the operator: what was switched off.
    """
    model.requires_grad_(False)
    model.eval()
    dropouts = _switch_dropout_off(model)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        # transformers checkpoints a layer only if it is in training mode; nothing else needs that mode
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer) or hasattr(module, "gradient_checkpointing"):
                module.training = True
    remarks = [f"the base model's own dropout (p={max(dropouts)}) is switched off"] if dropouts else []
    if getattr(model.config, "output_router_logits", False):
        model.config.output_router_logits = False
        remarks.append("the load-balancing loss of its router is left out (output_router_logits)")
    return remarks


def _switch_dropout_off(model: Any) -> list[float]:
    """Set every dropout to 0: modules, and the probabilities that layers keep for functional dropout.

    Returns:
        The probabilities that were above 0.
    """
    probabilities: list[float] = []
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            probabilities.append(module.p)
            module.p = 0.0
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    for owner in [*model.modules(), *configs.values()]:
        for name, value in list(vars(owner).items()):
            if _is_dropout(name) and isinstance(value, float) and value > 0:
                probabilities.append(value)
                setattr(owner, name, 0.0)
    return probabilities


def _is_dropout(name: str) -> bool:
    """Whether a field is a dropout probability of the language model (heads for other tasks have theirs too)."""
    return "drop" in name and "classifier" not in name and "summary" not in name
