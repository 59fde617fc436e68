"""Disks that are full, folders that vanish, bits that flip: they cost steps at most, never a job, a row or a byte."""

import contextlib
import errno
import json
import resource
import shutil
from pathlib import Path

import pytest

from gpu_actor.adapters import whole_files
from gpu_actor.contract.config import EarlyStopConfig
from gpu_actor.contract.errors import AdapterError
from gpu_actor.contract.report import TenantState
from gpu_actor.training import run_files
from gpu_actor.training.trainer import CoTrainer
from support.engine import flat, make_spec, make_tenant, run_all, tiny_hooked
from support.interrupted import TRAINING, spec_in, started, uninterrupted, without_time
from support.oracle import same_bytes
from support.tiny import token_rows


@contextlib.contextmanager
def full_disk():
    """Files of this process cannot grow beyond 4 KiB: enough for a row of metrics, and for no checkpoint."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_cannot_be_written_costs_no_job(tmp_path):
    """At a save in between and at a pause; what was half written goes, the older one stands, and it is told at once."""
    base = tiny_hooked()
    expected = uninterrupted(base, tmp_path / "whole")
    trainer, tenant = started(base, spec_in(tmp_path), 3)
    with full_disk():
        while tenant.progress.step < 5:
            trainer.step()
        assert "nothing is saved since step 2, the job goes on for now: " in trainer.reports()[0].unsaved
        trainer.detach("job", keep=True)
    assert trainer.reports()[0].state is TenantState.DETACHED
    assert [folder.name for folder in tenant.output_dir.glob("*checkpoint-*")] == ["checkpoint-2"]
    (tenant.output_dir / ".checkpoint-4.99.tmp").mkdir()  # half written by a process that has ended
    again = make_tenant(base, spec_in(tmp_path), attempt=2)
    assert again.progress.step == 2
    assert [folder.name for folder in tenant.output_dir.glob("*checkpoint-*")] == ["checkpoint-2"]
    run_all(base, [again])
    assert same_bytes(flat(again), flat(expected))
    assert without_time(again.output_dir) == without_time(expected.output_dir)


@pytest.mark.parametrize("patience", [None, 9])
def test_a_job_on_a_full_disk_waits_with_its_reason_and_goes_on_where_it_was(tmp_path, monkeypatch, patience):
    """Before too much is unsaved, and before its end; its neighbour trains on. No row and no byte is lost."""
    monkeypatch.setattr(run_files, "_AGAIN_SECONDS", 0.0)
    base = tiny_hooked()
    stop = {"early_stop": EarlyStopConfig(patience=patience)}
    expected = make_tenant(base, spec_in(tmp_path / "whole").model_copy(update=stop))
    run_all(base, [expected])
    tenant = make_tenant(base, spec_in(tmp_path, max_unsaved_steps=3).model_copy(update=stop))
    neighbour = make_tenant(base, make_spec(tmp_path, "other", token_rows(14), {"r": 2}, {"max_steps": 60}))
    trainer = CoTrainer(base)
    for each in (tenant, neighbour):
        trainer.attach(each)
    while tenant.progress.step < 2:
        trainer.step()
    write, only_adapter = whole_files.draft_tensors, False

    def no_room(path, tensors):  # nor for the finished adapter alone, where the checkpoints still find some
        if tenant.output_dir in path.parents and (not only_adapter or path.parent == tenant.output_dir):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, tensors)

    def try_for_a_while():
        monkeypatch.setattr(whole_files, "draft_tensors", no_room)
        told = []
        for _ in range(20):
            trainer.step()
            told.append(bool(trainer.reports()[0].unsaved))
        assert told == sorted(told), "rows that can be written are no reason to call all well"
        report = trainer.reports()[0]
        assert report.state is TenantState.TRAINING
        assert (
            f"waits at step {report.step} until its folder can be written: [Errno 28] No space left on device"
            in report.unsaved
        )
        assert not (tenant.output_dir / "adapter_config.json").exists()
        monkeypatch.setattr(whole_files, "draft_tensors", write)
        trainer.step()
        return report.step

    unsaved_best = patience is not None  # the best adapter is of this step alone: it must be written before the next
    assert try_for_a_while() == (3 if unsaved_best else 5)
    while tenant.progress.step < 8:
        trainer.step()
    assert trainer.reports()[0].unsaved == ""
    only_adapter = True
    assert try_for_a_while() == 9
    while not trainer.idle:
        trainer.step()
    assert {report.state for report in trainer.reports()} == {TenantState.SUCCEEDED}
    assert neighbour.progress.step == 60
    assert same_bytes(flat(tenant), flat(expected))
    assert without_time(tenant.output_dir) == without_time(expected.output_dir)
    names = ("adapter_model.safetensors", "adapter_config.json")
    assert all((tenant.output_dir / name).read_bytes() == (expected.output_dir / name).read_bytes() for name in names)


def test_rows_that_cannot_be_written_wait(tmp_path):
    base = tiny_hooked()
    expected = uninterrupted(base, tmp_path / "whole")
    trainer, tenant = started(base, spec_in(tmp_path), 4)
    metrics = tenant.output_dir / "metrics.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (metrics.stat().st_size + 20, before[1]))  # room for a torn row
    try:
        while tenant.progress.step < 6:
            trainer.step()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert all(json.loads(line) for line in metrics.read_text().splitlines())
    while not trainer.idle:
        trainer.step()
    assert without_time(tenant.output_dir) == without_time(expected.output_dir)


def test_no_checkpoint_is_ahead_of_the_rows_and_of_the_best_adapter(tmp_path, monkeypatch):
    """A job that waits on a full disk is taken off its actor when there is room again: all that waits goes along."""
    base = tiny_hooked()
    stop = {"early_stop": EarlyStopConfig(patience=9)}
    expected = make_tenant(base, spec_in(tmp_path / "whole").model_copy(update=stop))
    run_all(base, [expected])
    trainer, tenant = started(base, spec_in(tmp_path).model_copy(update=stop), 2)

    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_files, "append_rows", no_room)
        patch.setattr(whole_files, "draft_tensors", no_room)
        for _ in range(20):
            trainer.step()
    assert "waits at step 3 until its folder can be written" in trainer.reports()[0].unsaved
    trainer.detach("job", keep=True)
    assert trainer.reports()[0].state is TenantState.DETACHED
    assert {"checkpoint-3", "checkpoint-best-3"} <= {path.name for path in tenant.output_dir.iterdir()}
    again = make_tenant(base, spec_in(tmp_path).model_copy(update=stop), attempt=2)
    run_all(base, [again])
    assert same_bytes(flat(again), flat(expected))
    assert without_time(again.output_dir) == without_time(expected.output_dir)


def test_an_output_folder_that_is_removed_is_made_again(tmp_path):
    base = tiny_hooked()
    expected = uninterrupted(base, tmp_path / "whole")
    trainer, tenant = started(base, spec_in(tmp_path), 5)
    shutil.rmtree(tenant.output_dir)
    while not trainer.idle:
        trainer.step()
    (report,) = trainer.reports()
    assert report.state is TenantState.SUCCEEDED
    assert report.notes == (f"{tenant.output_dir} was gone, and was made again; what was in it is lost",)
    assert same_bytes(flat(tenant), flat(expected))
    assert (tenant.output_dir / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("what", ["folder", "metrics"])
def test_a_link_that_appears_later_is_not_written_through(tmp_path, monkeypatch, what):
    monkeypatch.setattr(run_files, "_AGAIN_SECONDS", 0.0)
    base = tiny_hooked()
    expected = uninterrupted(base, tmp_path / "whole")
    trainer, tenant = started(base, spec_in(tmp_path), 3)
    place = tenant.output_dir if what == "folder" else tenant.output_dir / "metrics.jsonl"
    victim, kept = tmp_path / "victim", tmp_path / "kept"
    victim.mkdir() if what == "folder" else victim.write_text("theirs\n")
    place.rename(kept)
    place.symlink_to(victim)
    while tenant.progress.step < 6:
        trainer.step()
    (report,) = trainer.reports()
    assert report.unsaved
    place.unlink()
    kept.rename(place)
    while trainer.reports()[0].state is TenantState.TRAINING:
        trainer.step()
    assert trainer.reports()[0].state is TenantState.SUCCEEDED
    assert list(victim.iterdir()) == [] if what == "folder" else victim.read_text() == "theirs\n"
    weights = "adapter_model.safetensors"
    assert (tenant.output_dir / weights).read_bytes() == (expected.output_dir / weights).read_bytes()
    assert without_time(tenant.output_dir) == without_time(expected.output_dir)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:20])


FILES = ["adapter_model.safetensors", "optimizer.safetensors", "trainer_state.json", "checksums.json"]


@pytest.mark.parametrize(
    ("damage", "file"), [*((flip_a_bit, file) for file in FILES), (cut, FILES[1]), (Path.unlink, FILES[2])]
)
def test_a_damaged_checkpoint_costs_steps_and_never_a_bit(tmp_path, damage, file):
    """Of any of its files one bit is another: the job goes on from the checkpoint before, or starts over."""
    base = tiny_hooked()
    expected = uninterrupted(base, tmp_path / "whole")
    _, tenant = started(base, spec_in(tmp_path), 5)
    damage(tenant.output_dir / "checkpoint-4" / file)
    again = make_tenant(base, spec_in(tmp_path), attempt=2)
    assert again.progress.step == 2
    (note,) = again.report(TenantState.TRAINING).notes
    assert note.startswith("checkpoint-4 is damaged and was removed (")
    assert note.endswith("; the job goes on from step 2")
    damage(tenant.output_dir / "checkpoint-2" / file)
    third = make_tenant(base, spec_in(tmp_path), attempt=3)
    assert third.progress.step == 0
    assert third.report(TenantState.TRAINING).notes[0].endswith("; the job has no other, and starts over")
    run_all(base, [third])
    assert same_bytes(flat(third), flat(expected))
    assert without_time(third.output_dir) == without_time(expected.output_dir)


def test_the_best_adapter_of_every_checkpoint_that_is_kept_is_kept(tmp_path):
    """Who falls back on the older checkpoint may export the best adapter that this one knows of."""
    base = tiny_hooked()
    training = {**TRAINING, "eval_steps": 1}
    spec = make_spec(tmp_path, "job", token_rows(4) * 4, {"r": 4}, training, dataset={"val_size": 3})
    spec = spec.model_copy(update={"early_stop": EarlyStopConfig(patience=9)})
    _, tenant = started(base, spec, 6)
    best = {json.loads(p.read_text())["progress"]["watch"]["best_step"] for p in tenant.output_dir.glob("c*/t*.json")}
    assert len(best) == 2, "both checkpoints know the same best step: the test shows nothing"
    assert {f"checkpoint-best-{step}" for step in best} <= {path.name for path in tenant.output_dir.iterdir()}


def test_an_adapter_that_has_changed_since_it_was_written_is_refused(tmp_path):
    base = tiny_hooked()
    tenant = uninterrupted(base, tmp_path)
    weights = tenant.output_dir / "adapter_model.safetensors"
    flip_a_bit(weights)
    spec = spec_in(tmp_path / "next")
    spec = spec.model_copy(update={"lora": spec.lora.model_copy(update={"init_adapter": str(tenant.output_dir)})})
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors: damaged: .* remove checksums.json if you"):
        make_tenant(base, spec)
    (tenant.output_dir / "checksums.json").unlink()
    make_tenant(base, spec)
