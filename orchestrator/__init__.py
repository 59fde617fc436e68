"""The part of Loray that decides: jobs, queue, placement. It knows Ray and never imports torch.

    from orchestrator import submit_job

    job = submit_job("configs/jobs/demo.yaml")
    job.wait()

Importing this package is cheap: Ray is imported when a cluster is joined.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gpu_actor.contract.errors import (
    AdapterError,
    BaseModelError,
    ClusterUnavailableError,
    DataError,
    IllegalTransitionError,
    InvalidJobError,
    JobFailedError,
    JobNotFoundError,
    LorayError,
    OutOfMemoryError,
    TrainingError,
    WaitTimeoutError,
)
from orchestrator.version import __version__

if TYPE_CHECKING:
    from orchestrator.client import Client, Job, submit_job
    from orchestrator.jobs.job import JobFileError, JobSpec
    from orchestrator.jobs.job_file import load_jobs
    from orchestrator.jobs.states import JobState

__all__ = [
    "__version__",
    "submit_job",
    "Client",
    "Job",
    "JobSpec",
    "JobState",
    "load_jobs",
    "LorayError",
    "AdapterError",
    "BaseModelError",
    "ClusterUnavailableError",
    "DataError",
    "IllegalTransitionError",
    "InvalidJobError",
    "JobFailedError",
    "JobFileError",
    "JobNotFoundError",
    "OutOfMemoryError",
    "TrainingError",
    "WaitTimeoutError",
]

_HOMES = {
    "submit_job": "orchestrator.client",
    "Client": "orchestrator.client",
    "Job": "orchestrator.client",
    "JobFileError": "orchestrator.jobs.job",
    "JobSpec": "orchestrator.jobs.job",
    "JobState": "orchestrator.jobs.states",
    "load_jobs": "orchestrator.jobs.job_file",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
