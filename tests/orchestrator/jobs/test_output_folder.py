"""The orchestrator's files in a job's output folder."""

import json
import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from gpu_actor.contract.config import DatasetConfig
from orchestrator.jobs.job import JobSpec
from orchestrator.jobs.output_folder import holds_job_file, sampled_metrics, write_job_file


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


def test_a_full_disk_leaves_no_draft(tmp_path):
    spec = JobSpec(name="j", base_model="org/m", dataset=DatasetConfig(path="/d"), output_dir=str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # bytes that a file may have, as if there were no more
    try:
        with pytest.raises(OSError, match="File too large"):
            write_job_file(spec)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_long_run_is_sampled_with_both_its_ends_and_all_its_evaluations(tmp_path):
    rows = [{"step": step, "loss": 1.0} for step in range(1, 1001)]
    for step in (250, 500, 750, 1000):
        rows.insert(rows.index({"step": step, "loss": 1.0}) + 1, {"step": step, "eval_loss": 2.0})
    half_a_line = '{"step": 1001, "lo'
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n" + half_a_line)
    sample = sampled_metrics(str(tmp_path), 50)
    steps = [row["step"] for row in sample if "loss" in row]
    assert (len(steps), steps[0], steps[-1]) == (50, 1, 1000)
    assert max(b - a for a, b in pairwise(steps)) <= 21
    assert [row["step"] for row in sample if "eval_loss" in row] == [250, 500, 750, 1000]
    assert sampled_metrics(str(tmp_path), 5000) == rows
    assert sampled_metrics(str(tmp_path / "none"), 50) == []
