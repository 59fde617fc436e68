"""The kind and shape of one adapter: PEFT's field names, PEFT's defaults where a description says nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gpu_actor.contract.expressions import check_expression, pattern_values
from gpu_actor.contract.strict import Strict

_PISSA_ROUNDS = re.compile(r"pissa_niter_([1-9]\d{0,2})$")


class LoraConfig(Strict):
    """The kind and shape of one adapter, in PEFT's words.

    LoRA (arXiv 2106.09685), rsLoRA (2312.03732), DoRA (2402.09353), PiSSA (2404.02948) and VeRA (2310.11454).
    """

    peft_type: Literal["LORA", "VERA"] = Field(
        "LORA",
        description="Kind of adapter: LORA trains two low-rank matrices per layer; VERA trains two vectors per layer "
        "between random matrices that are frozen and shared by all layers.",
    )
    r: int = Field(8, ge=1, le=4096, description="Rank of the adapter; VERA must be given one (PEFT's default: 256).")
    lora_alpha: float = Field(
        8, gt=0, le=10**6, description="Scale: the update is multiplied by lora_alpha / r (or lora_alpha / sqrt(r))."
    )
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout on the adapter's input while training.")
    target_modules: str | list[str] = Field(
        "all-linear",
        description="Linear layers to adapt: a list of name endings, one regular expression for the whole name, or "
        "`all-linear` (the default here; PEFT's depends on the model): all but the output head.",
    )
    exclude_modules: str | list[str] | None = Field(
        None, description="Linear layers to leave out: a list of name endings, or one regular expression."
    )
    layers_to_transform: int | list[int] | None = Field(
        None, description="Numbers of the layers to adapt (a number or a list); null adapts all."
    )
    layers_pattern: str | list[str] | None = Field(
        None,
        description="Name of the list of layers, such as `layers` or `h`, that layers_to_transform counts in; null "
        "takes the first number in a module's name.",
    )
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=4096)]] = Field(
        {},
        description="Name ending, or regular expression for it, to the rank there; the first that fits decides.",
    )
    alpha_pattern: dict[str, Annotated[float, Field(gt=0, le=10**6)]] = Field(
        {},
        description="Name ending, or regular expression for it, to the lora_alpha there; the first that fits decides.",
    )
    use_rslora: bool = Field(False, description="Scale by lora_alpha / sqrt(r) (rank-stabilised LoRA).")
    use_dora: bool = Field(
        False, description="Train the length of each output's weights apart from their direction (DoRA)."
    )
    init_lora_weights: bool | str = Field(
        True,
        description="Start values: true (A random, B zero), gaussian, orthogonal, pissa (the base's largest singular "
        "values), or pissa_niter_<n> (the same, approximated in n rounds and much faster).",
    )
    vera_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout on the input of a VERA adapter.")
    d_initial: float = Field(0.1, ge=-(10**6), le=10**6, description="Start value of VERA's vector lambda_d.")
    projection_prng_key: int = Field(
        0, ge=0, le=2**63 - 1, description="Seed of VERA's random matrices; equal keys give equal matrices."
    )
    save_projection: bool = Field(
        True, description="Save VERA's random matrices with the adapter; false makes them anew from the key."
    )
    init_adapter: str | None = Field(
        None, min_length=1, description="Folder of a PEFT adapter to start from; null starts as PEFT does."
    )

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _modules(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list):
            if not value or not all(value):
                raise ValueError("must name at least one module")
            if len(set(value)) != len(value):
                raise ValueError("names a module twice")
        elif value is not None:
            check_expression(value)
        return value

    @field_validator("layers_to_transform")
    @classmethod
    def _layer_numbers(cls, value: int | list[int] | None) -> int | list[int] | None:
        numbers = [value] if isinstance(value, int) else value
        if numbers is not None and (not numbers or min(numbers) < 0):
            raise ValueError("must be layer numbers, from 0 up, and at least one of them")
        return value

    @field_validator("layers_pattern")
    @classmethod
    def _layer_names(cls, value: str | list[str] | None) -> str | list[str] | None:
        names = [value] if isinstance(value, str) else value
        if names is not None and not (names and all(names)):
            raise ValueError("must name at least one list of layers")
        for name in names or []:
            check_expression(name)
        return value

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _patterns(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            check_expression(key)
        return value

    @field_validator("init_lora_weights")
    @classmethod
    def _start(cls, value: bool | str) -> bool | str:
        if (
            value is not True
            and value not in ("gaussian", "orthogonal", "pissa")
            and not _PISSA_ROUNDS.match(str(value))
        ):
            raise ValueError(
                "is no start that Loray has; allowed: true, gaussian, orthogonal, pissa, pissa_niter_<n> (n from 1)"
            )
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> LoraConfig:
        if problem := self._conflict():
            raise ValueError(problem)
        return self

    def _conflict(self) -> str | None:
        """What of the fields does not go together, in words."""
        if (
            isinstance(self.target_modules, str)
            and self.target_modules != "all-linear"
            and self.layers_to_transform is not None
        ):
            return "layers_to_transform does not go with a target_modules that is a regular expression; give a list"
        if self.layers_pattern is not None and self.layers_to_transform is None:
            return "layers_pattern needs layers_to_transform; give the numbers of the layers"
        if self.peft_type == "VERA":
            return self._vera_conflict()
        if changed := self._changed("vera_dropout", "d_initial", "projection_prng_key", "save_projection"):
            return f"{changed} belongs to peft_type VERA; leave it out, or set peft_type: VERA"
        if self.init_adapter is not None and self.init_lora_weights is not True:
            return f"init_lora_weights {self.init_lora_weights} does not go with init_adapter, which gives the start"
        if self.use_dora and self.starts_from_base:
            return (
                f"use_dora does not go with init_lora_weights {self.init_lora_weights}: PEFT's conversion of the "
                f"result to a plain adapter would lose DoRA's magnitudes"
            )
        odd = [rank for rank in (self.r, *self.rank_pattern.values()) if rank % 2]
        if self.init_lora_weights == "orthogonal" and odd:
            return f"init_lora_weights orthogonal needs even ranks; {odd[0]} is odd"
        return None

    def _vera_conflict(self) -> str | None:
        lora_only = ("lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "use_dora", "init_lora_weights")
        if changed := self._changed(*lora_only, "exclude_modules"):
            return f"{changed} is not a part of VeRA; leave it out, or set peft_type: LORA"
        if self._changed("lora_dropout"):
            return "lora_dropout is called vera_dropout with peft_type VERA; rename it"
        if "r" not in self.model_fields_set:
            return "r is missing; peft_type VERA trains r values per layer and needs a larger one (PEFT's default: 256)"
        return None

    def _changed(self, *fields: str) -> str | None:
        """The first of some fields that does not have its default."""
        declared = type(self).model_fields
        return next((name for name in fields if getattr(self, name) != declared[name].default), None)

    @property
    def dropout(self) -> float:
        """Dropout on the adapter's input, whatever its kind calls it."""
        return self.vera_dropout if self.peft_type == "VERA" else self.lora_dropout

    @property
    def starts_from_base(self) -> bool:
        """Whether the start is taken out of the base weight (PiSSA)."""
        return isinstance(self.init_lora_weights, str) and self.init_lora_weights.startswith("pissa")

    @property
    def pissa_rounds(self) -> int | None:
        """Rounds of PiSSA's approximate decomposition; None makes the exact one."""
        match = _PISSA_ROUNDS.match(str(self.init_lora_weights))
        return int(match[1]) if match else None

    def ranks_of(self, names: Sequence[str]) -> dict[str, int]:
        """Rank of the update of each of some modules; here as below, a pattern that takes too long is refused."""
        return pattern_values(self.rank_pattern, names, self.r, "lora.rank_pattern")

    def alphas_of(self, names: Sequence[str]) -> dict[str, float]:
        """The lora_alpha of each of some modules."""
        return pattern_values(self.alpha_pattern, names, self.lora_alpha, "lora.alpha_pattern")

    def scalings_of(self, names: Sequence[str]) -> dict[str, float]:
        """The factor on the update of each of some modules."""
        if self.peft_type == "VERA":
            return dict.fromkeys(names, 1.0)
        ranks, alphas = self.ranks_of(names), self.alphas_of(names)
        return {name: alphas[name] / (math.sqrt(ranks[name]) if self.use_rslora else ranks[name]) for name in names}
