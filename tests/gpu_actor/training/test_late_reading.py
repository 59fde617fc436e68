"""A GPU is not waited for: how often a shared step asks it, and that late answers change nothing."""

import json
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from gpu_actor.contract.report import TenantState
from gpu_actor.device.readback import Readback
from gpu_actor.model.base_model import BaseModel
from gpu_actor.model.freeze import freeze
from gpu_actor.training.trainer import CoTrainer
from support.engine import flat, make_spec, make_tenant, tiny_hooked
from support.oracle import same_bytes
from support.tiny import tiny_model, token_rows


class Crossings(TorchFunctionMode):
    """Counts what would cross the bus if the base model were on a GPU; on a CPU nothing does.

    A tensor made of Python's or numpy's numbers, and what is made of it, is the host's until it is sent to a device:
    a copy to it. A number, truth or shape that hangs on the values of any other tensor is a read from the device.
    """

    READS = ("item", "tolist", "numpy", "cpu", "nonzero", "unique", "masked_select", "__bool__", "__float__", "__int__")
    MADE_HERE = ("tensor", "as_tensor", "scalar_tensor")

    def __init__(self, patch):
        super().__init__()
        self.reads, self.copies = [], []
        self._of_host = {}  # by id; alive, so that no other tensor gets the id
        made = torch.from_numpy  # no mode sees this one
        patch.setattr(torch, "from_numpy", lambda array: self._on_host(made(array)))

    def _on_host(self, tensor):
        self._of_host[id(tensor)] = tensor
        return tensor

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        ours = any(id(given) in self._of_host for given in args)
        sent = name == "to" and any(isinstance(given, torch.device) for given in (*args[1:], *kwargs.values()))
        made_here = name in self.MADE_HERE
        if (ours and sent) or (made_here and kwargs.get("device") is not None):
            self.copies.append(name)
        if not ours and name in self.READS and isinstance(args[0], torch.Tensor):
            self.reads.append(name)
        if name == "__getitem__" and any(_is_mask(index) for index in _each(args[1])):
            self.reads.append("mask")
        result = func(*args, **kwargs)
        stays = (ours and not sent) or (made_here and kwargs.get("device") is None)
        return self._on_host(result) if stays and isinstance(result, torch.Tensor) else result


def _each(index):
    return index if isinstance(index, tuple) else (index,)


def _is_mask(index):
    return isinstance(index, torch.Tensor) and index.dtype is torch.bool


def trainer_of(folder, base, jobs, *, late, **training):
    trainer = CoTrainer(base, 4096)
    trainer.late = late
    for name in jobs:
        settings = {"max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 1e-2, **training}
        rows = token_rows(12, seed=ord(name))
        spec = make_spec(folder, name, rows, {"r": 4}, settings, {"val_size": 2} if "eval_steps" in settings else None)
        trainer.attach(make_tenant(base, spec))
    return trainer


def test_a_step_of_eight_adapters_is_one_copy_to_the_device_and_one_read(tmp_path, monkeypatch):
    model = tiny_model()
    freeze(model)
    base = BaseModel("tiny", model, kernels="cuda")
    base.body.pack().close()
    trainer = trainer_of(tmp_path, base, "abcdefgh", late=True)
    trainer.step()
    for _ in range(3):
        with monkeypatch.context() as patch, Crossings(patch) as seen:
            trainer.step()
        assert trainer.batch_adapters == 8
        assert (len(seen.copies), len(seen.reads)) == (1, 1), (seen.copies, seen.reads)


def files_of(tenant):
    """Metrics without the times at which they were written."""
    rows = [json.loads(row) for row in (tenant.output_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]


@pytest.mark.parametrize("training", [{}, {"eval_steps": 2, "save_steps": 3}, {"logging_steps": 4}])
def test_what_is_read_late_is_the_same(tmp_path, training):
    """To the bit: adapters, metrics, evaluations, reports."""
    ends = []
    for late in (False, True):
        trainer = trainer_of(tmp_path / str(late), tiny_hooked(), "ab", late=late, **training)
        tenants = list(trainer._tenants.values())
        behind = 0
        while not trainer.idle:
            trainer.step()
            behind += sum(tenant.steps_taken > tenant.progress.step for tenant in tenants)
        assert (behind > 0) == late
        ends.append((tenants, trainer.reports()))
    for now, then in zip(*(tenants for tenants, _ in ends), strict=True):
        assert same_bytes(flat(now), flat(then))
        assert files_of(now) == files_of(then)
        assert now.progress == then.progress
    for now, then in zip(*(reports for _, reports in ends), strict=True):
        assert (now.state, now.step, now.loss, now.eval_loss) == (then.state, then.step, then.loss, then.eval_loss)
        assert now.state is TenantState.SUCCEEDED


def test_who_leaves_takes_the_step_along_that_was_not_read_yet(tmp_path):
    trainer = trainer_of(tmp_path, tiny_hooked(), "ab", late=True)
    for _ in range(3):
        trainer.step()
    trainer.detach("a", keep=True)
    trainer.finish("b", "enough")
    assert {report.job_id: (report.state, report.step) for report in trainer.reports()} == {
        "a": (TenantState.DETACHED, 3),
        "b": (TenantState.SUCCEEDED, 3),
    }
    assert (Path(tmp_path) / "a" / "out" / "checkpoint-3").exists()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_leaves_the_adapter_as_it_was(tmp_path, late, poison):
    """And the neighbour what it is without it."""
    ends = {}
    for poisoned in (False, True):
        trainer = trainer_of(tmp_path / str(poisoned), tiny_hooked(), "ab", late=late)
        bad, good = trainer._tenants.values()
        for _ in range(2):
            trainer.step()
        before = flat(bad)
        if poisoned:
            bad.weights.gradient[3] = poison
            trainer.step()
            trainer.step()
            (report,) = (report for report in trainer.reports() if report.job_id == "a")
            assert (report.state, report.step) == (TenantState.FAILED, 2)
            assert "gradient norm became" in report.reason
            assert "at optimizer step 3" in report.reason
            assert same_bytes(flat(bad), before)
        while not trainer.idle:
            trainer.step()
        ends[poisoned] = flat(good)
    assert same_bytes(ends[True], ends[False])


def test_vectors_come_back_as_they_were_sent():
    vectors = [torch.tensor([1.5, float("inf")]), torch.tensor([0.1, -2.0, 3.0], dtype=torch.float64)]
    assert Readback(vectors).read() == [[1.5, float("inf")], [0.1, -2.0, 3.0]]
