"""The base of every configuration."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator


class Strict(BaseModel):
    """Base of every configuration: immutable, unknown fields refused, no NaN or infinity, no silent casts."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    @field_validator("*")
    @classmethod
    def _holds_no_nul(cls, value: Any) -> Any:
        if isinstance(value, str) and "\0" in value:  # no path may; the system's own calls end in a bare ValueError
            raise ValueError("holds a NUL character (\\0), which neither a path nor a name can have; leave it out")
        return value
