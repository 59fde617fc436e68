"""What a Ray job (`ray job submit`) tells of the LoRA jobs that came with it: its metadata on the dashboard's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.cluster.ray_internals import ray_job_metadata, set_ray_job_metadata, submission_id

_JOBS, _LOGS = "lora_jobs", "lora_logs"


def note_in_ray_job(accepted: Sequence[Mapping[str, Any]]) -> None:
    """Notes jobs in the metadata of the Ray job that this process belongs to, if it does.

    Args:
        accepted: The jobs as clients see them.
    """
    submission = submission_id()
    if submission is not None and accepted:
        set_ray_job_metadata(submission, with_jobs(ray_job_metadata(submission), accepted))


def with_jobs(metadata: Mapping[str, str], accepted: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The metadata of a Ray job with further LoRA jobs: whose they are, their names and ids, and how to see their logs.

    What a person gave by `--metadata-json` stays, an `owner` too.

    Args:
        metadata: As they were.
        accepted: The jobs as clients see them.
    """
    earlier = [metadata[_JOBS]] if metadata.get(_JOBS) else []
    jobs = ", ".join(earlier + [f"{job['name']} ({job['id']})" for job in accepted])
    return {"owner": str(accepted[0]["owner"]), **metadata, _JOBS: jobs, _LOGS: "loray logs ID"}
