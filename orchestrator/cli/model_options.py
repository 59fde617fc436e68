"""What the verbs that read a job's adapter share: which step of it, how the base is quantised, who knows the job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import typer

from gpu_actor.contract.config import Quantization
from gpu_actor.contract.errors import ClusterUnavailableError, LorayError
from gpu_actor.contract.questions import Step
from orchestrator.client import Client

QUANTIZATIONS: dict[str, Quantization] = {"nf4": "nf4", "int8": "int8"}
Choice = TypeVar("Choice")
OneStep = Annotated[str, typer.Option("--step", metavar="latest|best|N", help="Which step of a job is meant.")]


def caller(address: str | None) -> Any:
    """What reaches the orchestrator; None where none was named and none runs."""
    try:
        return Client(address).call
    except ClusterUnavailableError:
        if address is not None:
            raise
        return None


def step_of(step: str) -> Step:
    """The step that `--step` names."""
    if step.isdecimal():
        return int(step)
    named: dict[str, Step] = {"latest": "latest", "best": "best"}
    return one_of(named, "--step", step)


def one_of(choices: Mapping[str, Choice], option: str, given: str) -> Choice:
    """The value of an option that has a few names."""
    if given not in choices:
        raise LorayError(f"{option}: {given!r} is not known; give {' or '.join(choices)}")
    return choices[given]
