"""Whose a job is: the operator's, or that of whoever's token it came in with."""

from __future__ import annotations

import re

from gpu_actor.contract.errors import LorayError
from gpu_actor.contract.messages import shorten

OPERATOR = "operator"
"""Who may do everything: whoever reaches the orchestrator through Ray, or has the operator's token."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class OwnerError(LorayError, ValueError):
    """A name that no owner can have, or that has a token already, or has none."""


class NotYoursError(LorayError, PermissionError):
    """What is asked for belongs to somebody else."""


def check_owner(name: str) -> str:
    """The name itself, if an owner can have it.

    Raises:
        OwnerError: It is none.
    """
    if not _NAME.fullmatch(name):
        raise OwnerError(
            f"{shorten(name)} is no name of an owner; allowed: up to 64 letters, digits, '.', '_' and '-', the first a "
            "letter or a digit"
        )
    return name
