"""An actor whose jobs are in a bucket that is away: they wait, may leave, and lose nothing when the actor stops."""

import time

import pytest

from gpu_actor.actor import GpuActor
from gpu_actor.contract.orders import Attach, Detach
from gpu_actor.contract.report import TenantState
from gpu_actor.storage.remote_folder import RemoteFolder
from support.engine import make_spec
from support.s3_server import BUCKET, s3_server

pytestmark = pytest.mark.slow


def spec_at(tmp_path, name, **training):
    spec = make_spec(tmp_path, name, training={"per_device_train_batch_size": 2, **training})
    return spec.model_copy(update={"output_dir": f"s3://{BUCKET}/{name}"})


def wait_for(actor, name, condition, seconds=240):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for tenant in actor.report().tenants:
            if tenant.job_id == name and condition(tenant):
                return tenant
        time.sleep(0.02)
    raise AssertionError(actor.report())


def test_jobs_wait_for_a_bucket_that_is_away_and_an_actor_that_stops_leaves_all_there(tmp_path, tiny_base, monkeypatch):
    monkeypatch.setenv("LORAY_HOME", str(tmp_path / "home"))
    with s3_server() as s3:
        actor = GpuActor({"name": "a", "base_model": tiny_base, "device": "cpu", "cpu_threads": 1})
        s3.refuses = lambda method, path: method == "GET"
        for spec in (spec_at(tmp_path, "waits", max_steps=4), spec_at(tmp_path, "leaves", max_steps=4)):
            actor.carry_out(Attach(spec, 1))
        for name in ("waits", "leaves"):
            waits = wait_for(actor, name, lambda tenant: tenant.unsaved)
            assert waits.state is TenantState.PREPARING
            assert "the job waits: s3://" in waits.unsaved
            assert "the disk is full" in waits.unsaved
        actor.carry_out(Detach("leaves", True, 1))
        wait_for(actor, "leaves", lambda tenant: tenant.state is TenantState.DETACHED)
        s3.well()
        wait_for(actor, "waits", lambda tenant: tenant.state is TenantState.SUCCEEDED)
        assert "adapter_model.safetensors" in RemoteFolder(f"s3://{BUCKET}/waits").names()

        long = spec_at(tmp_path, "long", max_steps=100_000, save_steps=50_000)
        actor.carry_out(Attach(long, 1))
        wait_for(actor, "long", lambda tenant: tenant.step >= 3)
        actor.stop()
        left = wait_for(actor, "long", lambda tenant: tenant.state is TenantState.DETACHED)
        assert f"checkpoint-{left.step}/checksums.json" in RemoteFolder(long.output_dir).names()
        assert list((tmp_path / "home" / "work").iterdir()) == []
