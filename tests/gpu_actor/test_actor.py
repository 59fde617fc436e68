"""The actor as Ray drives it, without Ray: control returns at once, training goes on in its thread."""

import signal
import threading
import time

import pytest
import torch

from gpu_actor.actor import GpuActor
from gpu_actor.contract import expressions
from gpu_actor.contract.orders import Attach, Detach, Forget, SetTokenBudget
from gpu_actor.contract.report import ActorPhase, TenantState
from gpu_actor.hosting import host as host_module
from gpu_actor.hosting import preparer
from gpu_actor.model.base_model import BaseModel
from gpu_actor.training.tenant import Tenant
from gpu_actor.training.trainer import CoTrainer
from support.engine import make_spec, make_tenant
from support.oracle import metric_rows
from support.tiny import token_rows

LONG = {"max_steps": 100_000, "per_device_train_batch_size": 2}
SHORT = {"max_steps": 5, "per_device_train_batch_size": 2}


@pytest.fixture
def actor(tiny_base):
    running = GpuActor({"name": "a", "base_model": tiny_base, "device": "cpu", "cpu_threads": 1})
    yield running
    running.stop()


@pytest.fixture
def host(actor):
    """The working actor in the shell, with its base model loaded."""
    wait_for(actor, lambda report, _: report.state is ActorPhase.READY)
    return actor._host


def trainer_of(host):
    return host._loading.result().trainer


def wait_for(actor, condition, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        report = actor.report()
        tenants = {tenant.job_id: tenant for tenant in report.tenants}
        if condition(report, tenants):
            return tenants
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {actor.report()}")


def has(job_id, *states):
    return lambda _, tenants: job_id in tenants and tenants[job_id].state in states


def test_a_job_from_attach_to_forget(tmp_path, actor):
    spec = make_spec(tmp_path, "one", token_rows(10), {"r": 4}, {**SHORT, "cutoff_len": 20}, {"val_size": 2})
    actor.carry_out(Attach(spec, 1))
    report = wait_for(actor, has("one", TenantState.SUCCEEDED))["one"]
    assert (report.step, report.total_steps, report.samples, report.attempt) == (5, 5, 8, 1)
    assert report.truncated > 0
    assert report.eval_loss is not None
    assert report.loss == metric_rows(spec.output_dir)[-1]["loss"]
    assert report.tokens == sum(row["tokens"] for row in metric_rows(spec.output_dir))
    actor.carry_out(Forget("one", 1))
    wait_for(actor, lambda _, tenants: not tenants)
    state = actor.report()
    assert state.state is ActorPhase.READY
    assert state.memory_used > 0
    assert state.memory_peak >= state.memory_used * 0.5
    assert state.base_bytes > 0
    assert trainer_of(actor._host).memory_limit == state.memory_limit  # what it reports is what it keeps to
    assert repr(actor).endswith("@cpu")


def test_an_actor_that_ends_fails_no_job_that_it_was_preparing(tmp_path, actor, host):
    """The process that reads its data ends with the actor, while it is still starting."""
    sandbox = host._loading.result().encoder.sandbox
    actor.carry_out(Attach(make_spec(tmp_path, "one", token_rows(10), {"r": 4}, SHORT), 1))
    wait_for(actor, lambda *_: sandbox._server is not None)
    actor.stop()
    host._preparer._executor.shutdown(wait=True)
    assert [(tenant.state, tenant.reason) for tenant in actor.report().tenants] == [(TenantState.PREPARING, None)]


def test_a_job_whose_data_are_read_by_a_process_that_is_killed_waits_and_goes_on(tmp_path, actor, host, monkeypatch):
    monkeypatch.setattr(preparer, "_AGAIN_SECONDS", 0.2)
    sandbox = host._loading.result().encoder.sandbox
    actor.carry_out(Attach(make_spec(tmp_path, "first", token_rows(10), {"r": 4}, SHORT), 1))
    wait_for(actor, has("first", TenantState.SUCCEEDED))

    def attach_and_kill(spec, reached):
        server = sandbox._server
        server.send_signal(signal.SIGSTOP)
        actor.carry_out(Attach(spec, 1))
        time.sleep(0.2)
        server.kill()
        return wait_for(actor, lambda _, tenants: reached(tenants[spec.job_id]))[spec.job_id]

    spec = make_spec(tmp_path, "one", token_rows(10), {"r": 4}, SHORT)
    waits = attach_and_kill(spec, lambda tenant: tenant.unsaved)
    assert waits.unsaved.startswith(
        f"the job waits: {spec.dataset.path}: the process that reads and encodes it was kil"
    )
    wait_for(actor, has("one", TenantState.SUCCEEDED))
    monkeypatch.setattr(preparer, "_MOST_KILLED", 1)
    spec = make_spec(tmp_path, "two", token_rows(10), {"r": 4}, SHORT)
    failed = attach_and_kill(spec, lambda tenant: tenant.state is TenantState.FAILED)
    assert "its machine has no memory left (1 times in a row); make room there" in failed.reason


def test_a_job_whose_targets_are_matched_by_a_process_that_is_killed_waits_and_goes_on(tmp_path, actor, monkeypatch):
    monkeypatch.setattr(preparer, "_AGAIN_SECONDS", 0.2)
    start = expressions._START
    monkeypatch.setattr(expressions, "_START", "import os; os.kill(os.getpid(), 9)")
    actor.carry_out(
        Attach(make_spec(tmp_path, "one", token_rows(10), {"r": 4, "target_modules": r".*\.(q|v)_proj"}, SHORT), 1)
    )
    waits = wait_for(actor, lambda _, tenants: "one" in tenants and tenants["one"].unsaved)["one"]
    assert "the process that matches regular expressions was killed" in waits.unsaved
    monkeypatch.setattr(expressions, "_START", start)
    wait_for(actor, has("one", TenantState.SUCCEEDED))


def test_only_the_thread_that_trains_has_threads_to_help_it(tmp_path, tiny_base, monkeypatch):
    """Libgomp would take a second pool for too many threads, and let the first one sleep between operations."""
    seen = {}

    def watched(method):
        def seeing(*arguments):
            seen[method.__name__] = (threading.current_thread().name.split("_")[0], torch.get_num_threads())
            return method(*arguments)

        return seeing

    monkeypatch.setattr(BaseModel, "new_adapter", watched(BaseModel.new_adapter))
    monkeypatch.setattr(CoTrainer, "step", watched(CoTrainer.step))
    actor = GpuActor({"name": "a", "base_model": tiny_base, "device": "cpu", "cpu_threads": 3})
    try:
        actor.carry_out(Attach(make_spec(tmp_path, "one", token_rows(10), {"r": 4}, SHORT), 1))
        wait_for(actor, has("one", TenantState.SUCCEEDED))
    finally:
        actor.stop()
        torch.set_num_threads(1)
    assert seen == {"new_adapter": ("loray-prepare", 1), "step": ("loray-train", 3)}


def test_a_broken_line_ends_its_job_alone_with_the_line(tmp_path, actor):
    good = make_spec(tmp_path, "good", token_rows(10), {"r": 4}, SHORT)
    bad = make_spec(tmp_path, "bad", token_rows(3), {"r": 4}, SHORT)
    with open(bad.dataset.path, "a") as file:
        file.write('{"input_ids": [5, 6\n')
    actor.carry_out(Attach(good, 1))
    actor.carry_out(Attach(bad, 1))
    tenants = wait_for(actor, lambda _, t: {r.state for r in t.values()} == {TenantState.SUCCEEDED, TenantState.FAILED})
    assert "data.jsonl:4" in tenants["bad"].reason
    assert tenants["good"].state is TenantState.SUCCEEDED


def test_detach_keeps_a_checkpoint_or_gives_up(tmp_path, actor, host):
    specs = [make_spec(tmp_path, name, token_rows(10), {"r": 4}, LONG) for name in ("kept", "dropped")]
    for spec in specs:
        actor.carry_out(Attach(spec, 1))
    wait_for(actor, lambda _, t: len(t) == 2 and all(r.step > 3 for r in t.values()))
    held, go_on, step = threading.Event(), threading.Event(), trainer_of(host).step
    trainer_of(host).step = lambda: (held.set(), go_on.wait(), step())
    try:
        assert held.wait(60)
        actor.carry_out(Detach("kept", True, 1))  # none of them waits for the step
        actor.carry_out(Detach("dropped", False, 1))
        actor.carry_out(Detach("unknown", True, 1))
    finally:
        go_on.set()
    tenants = wait_for(actor, has("dropped", TenantState.CANCELLED))
    assert tenants["kept"].state is TenantState.DETACHED
    (kept,) = (tmp_path / "kept" / "out").glob("checkpoint-*")
    assert kept.name == f"checkpoint-{tenants['kept'].step}"
    assert not list((tmp_path / "dropped" / "out").glob("*checkpoint*"))

    actor.carry_out(Forget("kept", 1))
    actor.carry_out(Attach(specs[0], 2))
    again = wait_for(actor, lambda _, t: "kept" in t and t["kept"].step > tenants["kept"].step)["kept"]
    assert again.attempt == 2


def test_detach_while_still_preparing(tmp_path, tiny_base):
    """The base is still loading when the job is given up."""
    actor = GpuActor({"name": "a", "base_model": tiny_base, "device": "cpu", "cpu_threads": 1})
    try:
        actor.carry_out(Attach(make_spec(tmp_path, "early", token_rows(10), {"r": 4}, LONG), 1))
        actor.carry_out(Detach("early", False, 1))
        assert actor.report().state is ActorPhase.LOADING
        assert wait_for(actor, has("early", TenantState.CANCELLED))["early"].step == 0
    finally:
        actor.stop()


def test_orders_that_come_before_the_working_actor_are_carried_out_when_it_is_there(monkeypatch):
    imported, carried_out = threading.Event(), []

    class SlowHost:
        def __init__(self, options, blank, head):
            imported.wait()

        carry_out = staticmethod(carried_out.append)

    monkeypatch.setattr(host_module, "Host", SlowHost)
    actor = GpuActor({"name": "a", "base_model": "tiny", "device": "cpu"})
    orders = [SetTokenBudget(64), Forget("one", 1), Forget("two", 1)]
    for order in orders[:2]:
        actor.carry_out(order)
    assert (actor.report().state, carried_out) == (ActorPhase.LOADING, [])
    imported.set()
    actor._thread.join(60)
    actor.carry_out(orders[2])
    assert carried_out == orders


def test_a_working_actor_that_cannot_be_made_is_reported_with_the_reason(monkeypatch):
    def fails(*_):
        raise ImportError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(host_module, "Host", fails)
    actor = GpuActor({"name": "a", "base_model": "tiny", "device": "cpu"})
    actor.stop()
    report = actor.report()
    assert (report.state, report.reason) == (
        ActorPhase.FAILED,
        "ImportError: libcudart.so.12: cannot open shared object file",
    )


def test_a_stale_attempt_leaves_the_wish_of_the_newer_one(tmp_path, host):
    preparer, hosted = host._preparer, host._loading.result()
    stale = make_tenant(hosted.base, make_spec(tmp_path, "job", token_rows(4), {"r": 4}, SHORT))
    preparer._attempts["job"], preparer._detached["job"] = stale.attempt + 1, False
    preparer._hand_over(stale, hosted)
    assert preparer._detached == {"job": False}


def test_a_job_that_finds_no_memory_while_others_train_is_made_between_two_shared_batches(
    tmp_path, actor, host, monkeypatch
):
    """In the second thread memory is short; in the training thread, where no batch has it just then, it is not."""
    base, threads = trainer_of(host).base, []
    new_adapter = base.new_adapter

    def short_of_memory(lora):
        threads.append(threading.current_thread())
        if threads[-1] is not host._thread or lora.r == 64:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return new_adapter(lora)

    monkeypatch.setattr(base, "new_adapter", short_of_memory)
    for name, rank in (("fits", 4), ("never", 64)):
        actor.carry_out(Attach(make_spec(tmp_path, name, token_rows(10), {"r": rank}, SHORT), 1))
    tenants = wait_for(actor, lambda _, t: {r.state for r in t.values()} == {TenantState.SUCCEEDED, TenantState.FAILED})
    assert tenants["never"].reason == "OutOfMemoryError: tried to allocate 2 GiB"
    assert [thread is host._thread for thread in threads].count(True) == 2


def test_what_cannot_be_done_between_two_batches_ends_no_training(tmp_path, actor, host):
    def fails(_):
        raise OSError("no")

    host._tasks.put(fails)
    actor.carry_out(Attach(make_spec(tmp_path, "one", token_rows(10), {"r": 4}, SHORT), 1))
    wait_for(actor, has("one", TenantState.SUCCEEDED))


def test_an_attempt_that_was_seen_changes_nothing(tmp_path, actor):
    spec = make_spec(tmp_path, "twice", token_rows(10), {"r": 4}, SHORT)
    for _ in range(3):
        actor.carry_out(Attach(spec, 1))
    wait_for(actor, has("twice", TenantState.SUCCEEDED))
    actor.carry_out(Attach(spec, 1))
    time.sleep(0.5)
    assert [r.state for r in actor.report().tenants] == [TenantState.SUCCEEDED]
    assert len(metric_rows(spec.output_dir)) == 5


def test_a_late_order_about_an_attempt_that_is_over_changes_nothing(tmp_path, actor):
    spec = make_spec(tmp_path, "late", token_rows(10), {"r": 4}, LONG)
    actor.carry_out(Detach("late", True, 1))
    actor.carry_out(Attach(spec, 1))
    actor.carry_out(Attach(spec, 2))
    first = wait_for(actor, lambda _, t: "late" in t and t["late"].step > 0)["late"]
    actor.carry_out(Detach("late", False, 1))
    later = wait_for(actor, lambda _, t: t["late"].step > first.step + 3)["late"]
    assert (first.attempt, later.attempt, later.state) == (2, 2, TenantState.TRAINING)


def test_a_later_attempt_begins_when_the_earlier_one_has_left_with_its_checkpoint(tmp_path, actor):
    """The order that ends the earlier one may be lost; two of them would write into one folder."""
    spec = make_spec(tmp_path, "again", token_rows(10), {"r": 4}, LONG)
    actor.carry_out(Attach(spec, 1))
    first = wait_for(actor, lambda _, t: "again" in t and t["again"].step > 3)["again"]
    actor.carry_out(Attach(spec, 2))
    later = wait_for(actor, lambda _, t: t["again"].attempt == 2 and t["again"].step > first.step + 3)["again"]
    actor.carry_out(Detach("again", True, 2))
    wait_for(actor, has("again", TenantState.DETACHED))
    steps = [row["step"] for row in metric_rows(spec.output_dir)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= later.step


def test_who_waits_for_its_earlier_attempt_holds_up_nobody(tmp_path, actor, monkeypatch):
    """The earlier one may leave late: what it has written is still on its way to where others find it."""
    arrived, leaves = threading.Event(), Tenant.may_leave.fget
    monkeypatch.setattr(Tenant, "may_leave", property(lambda tenant: arrived.is_set() and leaves(tenant)))
    spec = make_spec(tmp_path, "again", token_rows(10), {"r": 4}, LONG)
    actor.carry_out(Attach(spec, 1))
    wait_for(actor, lambda _, t: "again" in t and t["again"].step > 3)
    actor.carry_out(Attach(spec, 2))
    actor.carry_out(Attach(make_spec(tmp_path, "other", token_rows(10), {"r": 4}, SHORT), 1))
    told = wait_for(actor, has("other", TenantState.SUCCEEDED))
    assert (told["again"].attempt, told["again"].state) == (2, TenantState.PREPARING)
    arrived.set()
    wait_for(actor, has("again", TenantState.TRAINING))


def test_an_end_is_reported_until_its_own_attempt_is_forgotten(tmp_path, actor):
    names = ("trained", "unreadable", "marker")
    specs = [make_spec(tmp_path, name, token_rows(10), {"r": 4}, SHORT) for name in names]
    with open(specs[1].dataset.path, "a") as file:
        file.write('{"input_ids": [5, 6\n')
    for spec in specs:
        actor.carry_out(Attach(spec, 2))
    over = {TenantState.SUCCEEDED, TenantState.FAILED}
    wait_for(actor, lambda _, t: len(t) == 3 and {report.state for report in t.values()} == over)
    for order in (Forget("trained", 1), Forget("unreadable", 1), Forget("marker", 2)):
        actor.carry_out(order)
    assert wait_for(actor, lambda _, t: "marker" not in t).keys() == {"trained", "unreadable"}
    for order in (Forget("trained", 2), Forget("unreadable", 2)):
        actor.carry_out(order)
    wait_for(actor, lambda _, t: not t)


def test_stop_writes_a_checkpoint_of_everyone(tmp_path, tiny_base):
    actor = GpuActor({"name": "a", "base_model": tiny_base, "device": "cpu", "cpu_threads": 1})
    actor.carry_out(Attach(make_spec(tmp_path, "job", token_rows(10), {"r": 4}, LONG), 1))
    wait_for(actor, lambda _, t: "job" in t and t["job"].step > 2)
    actor.stop()
    (report,) = actor.report().tenants
    assert report.state is TenantState.DETACHED
    assert (tmp_path / "job" / "out" / f"checkpoint-{report.step}").is_dir()


def test_a_base_that_cannot_be_loaded_is_said_and_fails_its_jobs(tmp_path):
    (tmp_path / "empty").mkdir()
    actor = GpuActor({"name": "a", "base_model": str(tmp_path / "empty"), "device": "cpu"})
    try:
        for attempt in (1, 2):
            actor.carry_out(Attach(make_spec(tmp_path, "job", token_rows(3), {"r": 4}, SHORT), attempt))
            tenants = wait_for(actor, has("job", TenantState.FAILED))
            assert tenants["job"].attempt == attempt
            assert "no usable model there" in tenants["job"].reason
        assert actor.report().state is ActorPhase.FAILED
        assert "config.json" in actor.report().reason
    finally:
        actor.stop()


@pytest.mark.parametrize(
    ("words", "phase"),
    [
        ("CUDA error: device-side assert triggered", ActorPhase.CRASHED),
        ("CUDA error: uncorrectable ECC error encountered", ActorPhase.DEVICE_GONE),
    ],
)
def test_an_actor_whose_device_is_lost_says_so_and_asks_it_for_nothing_more(tmp_path, actor, host, words, phase):
    """The fleet then starts another; no job has failed."""

    def fails(*_, **__):
        raise torch.AcceleratorError(words)

    for name in ("one", "two"):
        actor.carry_out(Attach(make_spec(tmp_path, name, token_rows(10), {"r": 4}, LONG), 1))
        wait_for(actor, has(name, TenantState.TRAINING))
    trainer_of(host).base.hidden = fails
    wait_for(actor, lambda report, _: report.state is phase)
    host._memory.used = fails
    assert words in actor.report().reason
    assert [tenant.state for tenant in actor.report().tenants] == [TenantState.TRAINING] * 2
    host._thread.join(60)
    assert not host._thread.is_alive()
