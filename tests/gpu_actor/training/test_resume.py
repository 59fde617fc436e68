"""A job that was interrupted anywhere gives the bytes, the metrics and the samples of one that was not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gpu_actor.adapters import whole_files
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.contract.config import EarlyStopConfig
from gpu_actor.contract.errors import AdapterError
from gpu_actor.contract.report import TenantState
from gpu_actor.data.samples import PairSet, SampleSet, digest
from gpu_actor.training import checkpoint
from gpu_actor.training.optimizer import make_optimizer, make_scheduler
from gpu_actor.training.trainer import CoTrainer
from support.engine import flat, make_tenant, run_all, tiny_hooked
from support.interrupted import spec_in, started, uninterrupted, without_time
from support.oracle import metric_rows, same_bytes


class Killed(BaseException):
    """Stands for the end of the process at that point."""


@pytest.mark.parametrize("killed_after", [1, 2, 5, 7])
@pytest.mark.slow
def test_killed_and_restarted_equals_uninterrupted(tmp_path, killed_after):
    """Killed in the middle of an optimizer step: what ran since the last checkpoint is made again, and only that."""
    base = tiny_hooked()
    expected = uninterrupted(base, tmp_path / "whole")
    trainer, first = started(base, spec_in(tmp_path), killed_after, token_budget=20)
    while len(first.pending) != 1:
        trainer.step()
    with (first.output_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')  # the torn line of a process that died while writing
    del first, trainer

    second = make_tenant(base, spec_in(tmp_path), attempt=2)
    assert second.progress.step == killed_after - killed_after % 2
    run_all(base, [second])
    assert same_bytes(flat(second), flat(expected))
    assert without_time(second.output_dir) == without_time(expected.output_dir)


def test_samples_are_read_once_each_without_a_gap(tmp_path):
    """The log of sample numbers over an interruption is that of an uninterrupted run."""
    base = tiny_hooked()

    def record(tenant, log):
        read = tenant.cursor.step

        def step(number):
            plan = read(number)
            log[number] = plan.micro_batches
            return plan

        tenant.cursor.step = step
        tenant.rewind_step()

    whole, parts = {}, {}
    tenant = make_tenant(base, spec_in(tmp_path / "whole"))
    record(tenant, whole)
    run_all(base, [tenant])
    tenant = make_tenant(base, spec_in(tmp_path))
    record(tenant, parts)
    trainer = CoTrainer(base, 256)
    trainer.attach(tenant)
    while tenant.progress.step < 5:
        trainer.step()
    tenant = make_tenant(base, spec_in(tmp_path), attempt=2)
    again = {}
    record(tenant, again)
    run_all(base, [tenant])
    assert min(again) == 4
    assert {**parts, **again} == whole
    for epoch in range(3):
        seen = [i for step in range(3 * epoch, 3 * epoch + 3) for group in whole[step] for i in group]
        assert sorted(seen) == list(range(11))


def test_detached_and_attached_elsewhere_equals_uninterrupted(tmp_path):
    base = tiny_hooked()
    expected = uninterrupted(base, tmp_path / "whole")
    trainer, tenant = started(base, spec_in(tmp_path, save_steps=1000), 5, token_budget=20)
    while len(tenant.pending) != 1:
        trainer.step()
    trainer.detach("job", keep=True)
    assert trainer.idle
    elsewhere = tiny_hooked()  # another process would load the base anew
    moved = make_tenant(elsewhere, spec_in(tmp_path, save_steps=1000), attempt=2)
    assert moved.progress.step == 5
    run_all(elsewhere, [moved])
    assert same_bytes(flat(moved), flat(expected))


def test_what_is_restored_is_all_on_the_device_of_the_adapter(tmp_path):
    """A fused optimizer wants its step count beside its moments: on another device than the CPU that is not the CPU."""
    base = tiny_hooked()
    for name, ratio in (("one-group", None), ("two-groups", 4.0)):
        _, tenant = started(base, spec_in(tmp_path / name, loraplus_lr_ratio=ratio), 1)
        tenant.save_checkpoint()
        layers = {index: (plan, tenant.weights._bases[index]) for index, plan in tenant.weights.plans.items()}
        weights = AdapterWeights(tenant.spec.lora, layers, torch.device("meta"))
        optimizer = make_optimizer(weights, tenant.spec.training)
        scheduler = make_scheduler(optimizer, tenant.spec.training, 9)
        found, _ = checkpoint.load_checkpoint(tenant.output_dir, weights, optimizer, scheduler, tenant.files._data)
        assert found.step == 1
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        assert [sorted(optimizer.state[p]) for p in parameters] == [["exp_avg", "exp_avg_sq", "step"]] * len(parameters)
        assert {value.device.type for p in parameters for value in optimizer.state[p].values()} == {"meta"}


def test_paused_before_its_first_step(tmp_path):
    base = tiny_hooked()
    expected = uninterrupted(base, tmp_path / "whole")
    trainer = CoTrainer(base)
    trainer.attach(make_tenant(base, spec_in(tmp_path)))
    trainer.detach("job", keep=True)
    again = make_tenant(base, spec_in(tmp_path), attempt=2)
    run_all(base, [again])
    assert same_bytes(flat(again), flat(expected))


def test_a_checkpoint_appears_whole_and_older_ones_go(tmp_path, monkeypatch):
    base = tiny_hooked()
    trainer, tenant = started(base, spec_in(tmp_path), 2)
    (kept,) = tenant.output_dir.glob("*checkpoint-*")
    assert kept.name == "checkpoint-2"
    trainer.step()

    def dies(*_, **__):
        raise Killed  # while the next checkpoint is half written

    monkeypatch.setattr(whole_files, "checksum", dies)
    with pytest.raises(Killed):
        tenant.save_checkpoint()
    monkeypatch.undo()
    again = make_tenant(base, spec_in(tmp_path), attempt=2)
    assert again.progress.step == 2
    run_all(base, [again])
    left = sorted(path.name for path in tenant.output_dir.glob("checkpoint-*"))
    assert left == ["checkpoint-8", "checkpoint-9"], "of a finished job, what it would finish from again"


def test_a_process_that_ends_while_a_checkpoint_is_removed_or_written_again_leaves_the_newest_whole(
    tmp_path, monkeypatch
):
    """Paused at a step that was just saved; and killed in the middle of any removal, the cancelled job's included."""
    base = tiny_hooked()
    expected = uninterrupted(base, tmp_path / "whole")
    trainer, _ = started(base, spec_in(tmp_path), 4)

    def dies(folder, **_):
        if Path(folder).exists():
            for file in sorted(Path(folder).iterdir())[:2]:
                file.unlink()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", dies)
        trainer.detach("job", keep=True)  # the same step again: nothing to write, nothing to remove
    moved = make_tenant(base, spec_in(tmp_path), attempt=2)
    assert moved.progress.step == 4
    trainer.attach(moved)
    trainer.step()
    monkeypatch.setattr(shutil, "rmtree", dies)
    with pytest.raises(Killed):
        moved.save_checkpoint()  # step 5 is written, step 2 goes
    assert sorted(folder.name for folder in moved.output_dir.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]
    monkeypatch.undo()
    assert make_tenant(base, spec_in(tmp_path), attempt=3).progress.step == 5
    monkeypatch.setattr(shutil, "rmtree", dies)
    with pytest.raises(Killed):
        moved.discard()
    monkeypatch.undo()
    again = make_tenant(base, spec_in(tmp_path), attempt=4)
    assert again.progress.step == 5, "one lost its name before anything else, the other is whole"
    run_all(base, [again])
    assert same_bytes(flat(again), flat(expected))


def test_an_older_attempt_that_still_writes_removes_no_newer_checkpoint(tmp_path):
    base = tiny_hooked()
    old, new = (make_tenant(base, spec_in(tmp_path), attempt) for attempt in (1, 2))
    trainer = CoTrainer(base)
    trainer.attach(new)
    while new.progress.step < 2:
        trainer.step()
    old.save_checkpoint()
    assert make_tenant(base, spec_in(tmp_path), attempt=3).progress.step == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [*lines, lines[0]],
        lambda lines: lines[:-1],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [json.dumps({**json.loads(lines[0]), "labels": json.loads(lines[0])["input_ids"]}), *lines[1:]],
    ],
)
def test_a_checkpoint_does_not_go_on_with_other_data(tmp_path, change):
    """A file that grew, a hub split that moved or a new tokenizer: step k of another run would be made in silence."""
    base = tiny_hooked()
    spec = spec_in(tmp_path)
    make_tenant(base, spec).save_checkpoint()
    assert make_tenant(base, spec).progress.step == 0
    file = Path(spec.dataset.path)
    lines = file.read_text().splitlines()
    file.write_text("\n".join(change(lines)))
    with pytest.raises(AdapterError, match=r"data set is no longer the one that .*checkpoint-0 was trained on"):
        make_tenant(base, spec)
    file.write_text("\n".join(lines))
    make_tenant(base, spec)


def test_data_sets_are_told_apart_by_every_part():
    ids, offsets = np.arange(6, dtype=np.int32), np.array([0, 1, 4, 6])
    whole = SampleSet(ids, ids, offsets)
    none = whole.select(np.array([], dtype=np.int64))
    first, last = whole.select(np.array([0, 1])), whole.select(np.array([2]))
    others = [
        digest(whole, none),
        digest(none, whole),
        digest(first, last),
        digest(last, first),
        digest(whole.select(np.array([1, 0])), last),
        digest(SampleSet(ids, -ids, offsets), none),
        digest(SampleSet(ids, ids, np.array([0, 2, 4, 6])), none),
        digest(PairSet(whole, whole), PairSet(none, none)),
        digest(PairSet(whole, SampleSet(ids, -ids, offsets)), PairSet(none, none)),
    ]
    assert len(set(others)) == len(others)
    assert digest(SampleSet(ids.copy(), ids.copy(), offsets.copy()), none) == others[0]


def test_a_job_killed_between_its_last_step_and_its_export_finishes(tmp_path):
    base = tiny_hooked()
    expected = uninterrupted(base, tmp_path / "whole")
    tenant = make_tenant(base, spec_in(tmp_path))

    def dies():
        raise Killed

    tenant.export = dies
    with pytest.raises(Killed):
        run_all(base, [tenant])
    again = make_tenant(base, spec_in(tmp_path), attempt=2)
    run_all(base, [again])
    assert same_bytes(flat(again), flat(expected))
    assert (again.output_dir / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("patience", [None, 1])
def test_a_job_that_ended_on_an_actor_that_died_before_it_could_tell_ends_again_and_trains_no_step(tmp_path, patience):
    base = tiny_hooked()
    spec = spec_in(tmp_path).model_copy(update={"early_stop": EarlyStopConfig(patience=patience, min_delta=0.5)})
    tenant = make_tenant(base, spec)
    first = run_all(base, [tenant]).reports()
    files = {path.name: path.read_bytes() for path in tenant.output_dir.iterdir() if path.is_file()}
    assert {"metrics.jsonl", "adapter_model.safetensors"} < set(files)
    (tenant.output_dir / "adapter_model.safetensors").write_bytes(b"")  # it died while it copied, say
    again = make_tenant(base, spec, attempt=2)
    assert again.finished
    trainer = CoTrainer(base)
    trainer.attach(again)
    assert trainer.idle
    (report,) = trainer.reports()
    assert (report.step, report.state, report.reason) == (first[0].step, TenantState.SUCCEEDED, first[0].reason)
    assert {path.name: path.read_bytes() for path in tenant.output_dir.iterdir() if path.is_file()} == files


def test_evaluation_changes_nothing_and_is_the_mean_token_loss(tmp_path):
    base = tiny_hooked()
    with_eval = make_tenant(base, spec_in(tmp_path / "a"))
    often = make_tenant(base, spec_in(tmp_path / "b", eval_steps=1))
    run_all(base, [with_eval])
    run_all(base, [often])
    assert same_bytes(flat(with_eval), flat(often))
    rows = [row for row in without_time(often.output_dir) if "eval_loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 10))
    by_epoch = [row["step"] for row in without_time(with_eval.output_dir) if "eval_loss" in row]
    assert by_epoch == [3, 6, 9]
    total = count = 0.0
    for ids, labels in (often.data.val[i] for i in range(len(often.data.val))):
        from gpu_actor.batch.shared_batch import MicroBatch, pack

        logits = base.logits(pack([MicroBatch(often.weights, [ids], [labels])], torch.device("cpu")))
        targets = torch.from_numpy(labels[1:].astype("int64"))
        total += float(torch.nn.functional.cross_entropy(logits[:-1], targets, ignore_index=-100, reduction="sum"))
        count += int((targets != -100).sum())
    assert rows[-1]["eval_loss"] == pytest.approx(total / count, rel=1e-5)
    assert metric_rows(often.output_dir)[-1]["step"] == 9


def test_a_second_run_after_removal_starts_over(tmp_path):
    base = tiny_hooked()
    first = uninterrupted(base, tmp_path)
    shutil.rmtree(first.output_dir)
    assert same_bytes(flat(uninterrupted(base, tmp_path)), flat(first))
