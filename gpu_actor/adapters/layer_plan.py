"""One linear layer of the base model, as one adapter changes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerPlan:
    """One linear layer of the base as one adapter changes it.

    Attributes:
        name: Module name.
        in_features: Inputs.
        out_features: Outputs.
        rank: Rank of the update there.
        scaling: Factor on the update there.
    """

    name: str
    in_features: int
    out_features: int
    rank: int
    scaling: float
