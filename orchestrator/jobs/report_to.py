"""The experiment trackers that a job can report to, under the names that transformers gives them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Literal

TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]

_PACKAGES: dict[TrackerName, str] = {
    "tensorboard": "tensorboardX",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
}


def not_installed(names: Iterable[TrackerName]) -> str:
    """Which trackers lack their package in this environment, and what to do about it; empty if none does.

    Nothing is imported for it.
    """
    lacking = [name for name in dict.fromkeys(names) if find_spec(_PACKAGES[name]) is None]
    if not lacking:
        return ""
    packages = ", ".join(_PACKAGES[name] for name in lacking)
    return (
        f"{', '.join(lacking)} cannot be reported to: {packages} is not installed where the orchestrator runs; "
        f"`pip install 'loray[{','.join(lacking)}]'` there, or leave it out of report_to"
    )
