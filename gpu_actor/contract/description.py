"""What is known of a base model without its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LinearShape:
    """One linear layer of a base model: module name and sizes."""

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Activations:
    """What the forward of a base model keeps for its backward; see `model.count_activations`."""

    token_bytes: float  # per token
    square_bytes: float = 0.0  # per squared sequence length: attention that is not fused
    head_bytes: float = 0.0  # per position whose logits are made, beside the logits
    half: Activations | None = None  # of an fp32 base: what it keeps in 16 bits on a GPU; None: nobody has counted

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Activations:
        """The inverse of `dataclasses.asdict`."""
        half = data.get("half")
        return cls(**{**data, "half": cls.from_dict(half) if half else None})


@dataclass(frozen=True)
class BaseDescription:
    """What must be known of a base model to check and size a job.

    `linears` run on every token of a text, and an adapter can change them. `head_linears` belong to the output head,
    `tower_linears` to the parts of a multimodal model that read images or sound. `experts` names weights of three
    dimensions, which mixtures of experts have: they are no linear layers, and no adapter can change them;
    `expert_endings` are names of layers that PEFT takes for experts, `renamed_linears` those of `linears` that it takes
    for others when it reads an adapter. `positions` is how many the base was made for;
    with `position_table` it looks them up (gpt2, opt, gptj), so that it cannot run a longer sequence at all.
    `training_mode` is a remark where the training mode, in which Trainer runs the base, computes something else.
    """

    ref: str
    model_type: str
    linears: tuple[LinearShape, ...]
    hidden_size: int
    num_layers: int
    vocab_size: int
    parameters: int
    head_linears: tuple[str, ...] = ()
    tower_linears: tuple[str, ...] = ()
    experts: tuple[str, ...] = ()
    expert_endings: tuple[str, ...] = ()
    renamed_linears: tuple[str, ...] = ()
    activations: Activations | None = None  # None: nobody has counted
    positions: int | None = None  # None: any number, or nobody says
    position_table: bool = False
    training_mode: str | None = None

    @property
    def longest_sequence(self) -> int | None:
        """Tokens of the longest sequence that the base can run; None: any number."""
        return self.positions if self.position_table else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, so that it can travel and be cached as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BaseDescription:
        """The inverse of `to_dict`."""
        linears = tuple(LinearShape(**linear) for linear in data["linears"])
        counted = data.get("activations")
        lists = ("head_linears", "tower_linears", "experts", "expert_endings", "renamed_linears")
        return cls(
            **{
                **data,
                **{name: tuple(data.get(name, ())) for name in lists},
                "linears": linears,
                "activations": Activations.from_dict(counted) if counted else None,
            }
        )
