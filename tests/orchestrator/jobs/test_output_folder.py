"""The orchestrator's files in a job's output folder."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpu_actor.contract.config import DatasetConfig
from orchestrator.jobs.job import JobSpec
from orchestrator.jobs.output_folder import holds_job_file, write_job_file


@pytest.fixture
def eager_threads():
    """Threads take turns so often that what they do to one file meets."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("eager_threads")
def test_a_submission_and_a_placement_may_write_the_job_file_at_once(tmp_path):
    """They are two threads of one process, and whoever comes second must not find its draft gone."""
    specs = [
        JobSpec(name=f"j{n}", base_model="org/m", dataset=DatasetConfig(path="/d"), output_dir=str(tmp_path / f"j{n}"))
        for n in range(50)
    ]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write_job_file, [spec for spec in specs for _ in range(8)]))
    assert all(holds_job_file(spec) for spec in specs)
    assert {path.name for path in tmp_path.glob("*/*")} == {"job.yaml"}
