"""`loray plan` without a cluster: what it tells, and that it starts nothing and writes nothing."""

import pytest

from gpu_actor.config import DatasetConfig, LoraConfig, TrainingConfig
from orchestrator.cluster_config import ClusterConfig
from orchestrator.job import JobSpec
from orchestrator.plan import plan_offline
from support.tiny import token_rows, write_rows


@pytest.fixture
def make(tmp_path, tiny_base):
    def make(name, r=8, **training):
        path = write_rows(tmp_path / f"{name}.jsonl", token_rows(24, seed=1))
        settings = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "cutoff_len": 64, **training}
        return JobSpec(
            name=name,
            base_model=tiny_base,
            dataset=DatasetConfig(path=path, format="tokens"),
            lora=LoraConfig(r=r),
            training=TrainingConfig(**settings),
            output_dir=str(tmp_path / "out" / name),
        )

    return make


def plan(tmp_path, specs, actors, policy="fifo-4"):
    config = ClusterConfig(storage=str(tmp_path / "storage"), actors=actors, scheduler={"policy": policy})
    return {row["job"]: row for row in plan_offline(specs, config)}


def test_two_jobs_on_one_actor_share_its_steps(tmp_path, make):
    rows = plan(tmp_path, [make("one"), make("two", num_train_epochs=4)], [{}])
    assert rows["one"]["steps"] == 2 * 24 // 4
    assert rows["two"]["steps"] == 4 * 24 // 4
    assert rows["one"]["actor"] == rows["two"]["actor"] == "cpu:0"
    assert rows["one"]["with"] == ["two"]
    assert 0 < rows["one"]["start_s"] < rows["one"]["finish_s"] < rows["two"]["finish_s"]
    assert rows["one"]["bytes"] > rows["one"]["adapter_bytes"] > 0
    assert not (tmp_path / "storage").exists()
    assert not (tmp_path / "out").exists()


def test_a_job_that_fits_nowhere_is_told_with_both_numbers(tmp_path, make):
    rows = plan(tmp_path, [make("big", r=4096), make("small")], [{"memory_limit": 700 * 2**20}])
    assert f"({700 * 2**20} bytes)" in rows["big"]["reason"]
    assert rows["big"]["actor"] is None
    assert rows["small"]["reason"] is None
