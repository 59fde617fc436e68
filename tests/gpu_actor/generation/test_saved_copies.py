"""Adapters of output folders in a bucket: a copy of the wanted step, fetched once, and nothing that is damaged."""

import pytest

from gpu_actor.contract.config import EarlyStopConfig
from gpu_actor.contract.errors import AdapterError, LorayError
from gpu_actor.generation.saved_copies import on_this_machine
from gpu_actor.generation.saved_steps import saved_step
from gpu_actor.storage.remote_folder import RemoteFolder
from gpu_actor.training.trainer import CoTrainer
from support.engine import make_tenant, tiny_hooked
from support.interrupted import spec_in
from support.s3_server import BUCKET, s3_server

pytestmark = pytest.mark.slow
WEIGHTS = "adapter_model.safetensors"


def test_the_wanted_step_is_copied_once_and_compared_with_its_checksum(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAY_HOME", str(tmp_path / "home"))
    base = tiny_hooked()
    spec = spec_in(tmp_path, num_train_epochs=30).model_copy(update={"early_stop": EarlyStopConfig(patience=50)})
    trainer, tenant = CoTrainer(base), make_tenant(base, spec)
    trainer.attach(tenant)
    while tenant.progress.step < 7:
        trainer.step()
    with s3_server() as s3:
        url = f"s3://{BUCKET}/run"
        remote = RemoteFolder(url)

        def upload():
            for path in tenant.output_dir.rglob("*"):
                if path.is_file():
                    remote.put(path, str(path.relative_to(tenant.output_dir)))

        def copy_of(step):
            return saved_step(*on_this_machine(url, step))

        upload()
        for step in ("latest", 4, "best"):
            here, number = saved_step(str(tenant.output_dir), step)
            there, same = copy_of(step)
            assert (there / WEIGHTS).read_bytes() == (here / WEIGHTS).read_bytes()
            assert same == number
            assert there.is_relative_to(tmp_path / "home" / "cache")
        with pytest.raises(AdapterError, match="no checkpoint of step 5 there; there is"):
            copy_of(5)

        fetched = s3.seen.count(("GET", f"/{BUCKET}/run/checkpoint-6/{WEIGHTS}"))
        newest, _ = copy_of("latest")
        assert s3.seen.count(("GET", f"/{BUCKET}/run/checkpoint-6/{WEIGHTS}")) == fetched
        whole = (newest / WEIGHTS).read_bytes()
        (newest / WEIGHTS).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert (copy_of("latest")[0] / WEIGHTS).read_bytes() == whole
        remote.write(f"checkpoint-4/{WEIGHTS}", whole)
        assert (copy_of(4)[0] / WEIGHTS).read_bytes() != whole, "what is whole here needs nothing from there"
        remote.write(f"checkpoint-6/{WEIGHTS}", whole[:-1])
        (newest / WEIGHTS).unlink()
        with pytest.raises(LorayError, match="is not what its SHA-256 says"):
            copy_of("latest")
        s3.refuses = lambda method, path: True
        with pytest.raises(LorayError, match="cannot be listed: the disk is full"):
            copy_of("latest")
