"""Loray's side: all jobs together, by the engine that its actor runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import loray_loop, workload
from side import Clock, Found, Job, run, samples

from gpu_actor.contract.config import AdapterSpec


def _train(model: Any, jobs: list[Job], _: str) -> Iterator[Found]:
    with Clock() as clock:
        found = loray_loop.co_train(model, [_as_job(job) for job in jobs])
    yield {**clock.spent, "losses": found.losses}


def _as_job(job: Job) -> workload.Job:
    spec = AdapterSpec.model_validate({**job["spec"], "output_dir": str(Path(sys.argv[2]).with_suffix("") / job["id"])})
    return workload.Job(spec, [(row["input_ids"], row["labels"]) for row in samples(job)])


if __name__ == "__main__":
    workload.quiet()
    run(loray_loop.load_loray, _train)
