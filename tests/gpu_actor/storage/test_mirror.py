"""Jobs whose output folder is in a real S3 server: nothing differs, and nothing but time is lost where it refuses."""

import time

import pytest

from gpu_actor.contract.report import TenantState
from gpu_actor.hosting.job_places import mirror_to
from gpu_actor.storage.remote_folder import RemoteFolder
from gpu_actor.training.trainer import CoTrainer
from support.engine import flat, make_tenant, tiny_hooked
from support.interrupted import spec_in, uninterrupted, without_time
from support.oracle import same_bytes
from support.s3_server import BUCKET, s3_server

pytestmark = pytest.mark.slow
NAMES = {"adapter_config.json", "adapter_model.safetensors", "checksums.json"}


@pytest.fixture(scope="module")
def s3():
    with s3_server() as server:
        yield server


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch, s3):
    monkeypatch.setenv("LORAY_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    s3.well()


@pytest.fixture(scope="module")
def base():
    return tiny_hooked()


def attached(base, spec):
    """A trainer with one tenant, whose files are what the storage has: as on a node that has never seen the job."""
    trainer, tenant = CoTrainer(base), make_tenant(base, spec, mirror=mirror_to(RemoteFolder(spec.output_dir), spec))
    trainer.attach(tenant)
    return trainer, tenant


def until(condition, trainer=None, seconds=240.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        if trainer is not None:
            trainer.step()
        time.sleep(0.02)


def spec_at(tmp_path, name, **training):
    return spec_in(tmp_path, **training).model_copy(update={"output_dir": f"s3://{BUCKET}/{name}"})


def test_a_job_goes_on_from_the_storage_and_ends_there_whole(base, tmp_path, home, s3):
    expected = uninterrupted(base, tmp_path / "whole")
    spec = spec_at(tmp_path, "moves")
    remote = RemoteFolder(spec.output_dir)

    trainer, tenant = attached(base, spec)
    until(lambda: tenant.progress.step >= 3, trainer)
    trainer.detach("job", keep=True)
    until(lambda: trainer.reports()[0].state is TenantState.DETACHED, trainer)
    assert "checkpoint-3/checksums.json" in remote.names()
    until(lambda: not list((home / "work").iterdir()))  # no file of it is left here

    damaged = bytearray(remote.read("checkpoint-3/optimizer.safetensors"))
    damaged[-1] ^= 1
    remote.write("checkpoint-3/optimizer.safetensors", bytes(damaged))
    remote.write("checkpoint-5/adapter_model.safetensors", b"half uploaded by a process that has died")

    trainer, tenant = attached(base, spec)
    assert tenant.progress.step == 2
    assert "checkpoint-3 is damaged" in tenant.report(TenantState.TRAINING).notes[0]
    until(lambda: not trainer.tenant_ids(), trainer)
    assert trainer.reports()[0].state is TenantState.SUCCEEDED
    assert same_bytes(flat(tenant), flat(expected))

    names = remote.names()
    assert NAMES | {"metrics.jsonl"} == {name for name in names if "/" not in name}
    kept = {name.partition("/")[0] for name in names if "/" in name}
    assert kept == {"checkpoint-8", "checkpoint-9"}
    for name in NAMES:
        assert remote.read(name) == (expected.output_dir / name).read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(remote.read("metrics.jsonl"))
    assert without_time(tmp_path) == without_time(expected.output_dir)
    puts = [path.rpartition("/") for method, path in s3.seen if method == "PUT"]
    own = [name for folder, _, name in puts if folder == f"/{BUCKET}/moves" and name in NAMES]
    assert own == ["adapter_model.safetensors", "adapter_config.json", "checksums.json"]


def test_where_it_refuses_the_job_waits_with_its_reason_and_is_the_same_in_the_end(base, tmp_path, s3):
    expected = uninterrupted(base, tmp_path / "whole")
    spec = spec_at(tmp_path, "refused", max_unsaved_steps=3)
    trainer, tenant = attached(base, spec)
    until(lambda: tenant.files.saved_step == 2, trainer)
    s3.refuses = lambda method, path: method == "PUT"
    until(lambda: "waits at step" in trainer.reports()[0].unsaved, trainer)
    report = trainer.reports()[0]
    assert report.state is TenantState.TRAINING
    assert report.step == 5
    assert "nothing is saved since step 2" in report.unsaved
    assert "the disk is full" in report.unsaved
    assert "secret-of-the-tests" not in report.unsaved

    s3.refuses = lambda method, path: method == "PUT" and path.endswith("/refused/adapter_model.safetensors")
    until(lambda: tenant.progress.step == 9 and trainer.reports()[0].unsaved, trainer)
    until(lambda: tenant.files.failure, trainer)
    assert trainer.reports()[0].state is TenantState.TRAINING
    assert not NAMES & RemoteFolder(spec.output_dir).names()
    s3.well()
    until(lambda: not trainer.tenant_ids(), trainer)
    assert trainer.reports()[0].state is TenantState.SUCCEEDED
    assert same_bytes(flat(tenant), flat(expected))


def test_a_slow_one_holds_up_its_own_job_beyond_the_bound_and_no_neighbour(base, tmp_path, s3):
    slow, near = spec_at(tmp_path / "a", "slow", max_unsaved_steps=2), spec_in(tmp_path / "b", num_train_epochs=30)
    s3.delay = lambda method, path: 1.0 if method == "PUT" and "/slow/" in path else 0.0
    trainer, tenant = attached(base, slow)
    neighbour = make_tenant(base, near.model_copy(update={"job_id": "near"}))
    trainer.attach(neighbour)
    until(lambda: tenant.progress.step == 2, trainer)
    began = neighbour.progress.step
    until(lambda: neighbour.progress.step > began + 5, trainer)
    assert tenant.progress.step <= 4
    assert tenant.files.saved_step == 0
    s3.well()
    until(lambda: "slow" not in trainer.tenant_ids() and tenant.progress.step == 9, trainer)
