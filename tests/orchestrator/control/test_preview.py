"""`loray plan` without a cluster: what it tells, and that it starts nothing and writes nothing."""

from dataclasses import replace

import pytest

from gpu_actor.contract.config import DatasetConfig, LoraConfig, TrainingConfig
from gpu_actor.model.describe import describe_base
from orchestrator.cluster.cluster_config import ActorConfig, ClusterConfig
from orchestrator.cluster.node_gpus import places_on_this_machine
from orchestrator.cluster.places import listed_places
from orchestrator.control.admission import _misfits
from orchestrator.control.job_needs import scheduling_view
from orchestrator.control.preview import plan_jobs, plan_offline
from orchestrator.jobs.job import JobSpec
from orchestrator.knowledge.data_size import DataSize
from orchestrator.knowledge.description_files import remember
from orchestrator.knowledge.place_models import with_models
from orchestrator.knowledge.profiles import Profile, Profiles, profile_key
from orchestrator.scheduler.estimate import MemoryFit, SpeedFit
from orchestrator.scheduler.view import ActorState, ClusterView, MemoryModel, SpeedModel
from orchestrator.store.store import Store
from support.tiny import token_rows, write_rows


@pytest.fixture
def make(tmp_path, tiny_base, tiny_description):
    remember(tiny_description)  # as after every run but the first

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


def test_what_earlier_runs_learned_is_read_and_a_database_that_is_not_there_is_not_made(tmp_path, make, tiny_base):
    (before,) = plan(tmp_path, [make("one")], [{}]).values()
    (place,) = places_on_this_machine([ActorConfig()])
    slow = Profile(SpeedFit(SpeedModel(9.0, 0.0, 0.0)), MemoryFit(MemoryModel(0.0, 0.0, 1024)))
    url = f"sqlite:///{tmp_path}/elsewhere/loray.db"
    config = ClusterConfig(storage=str(tmp_path / "storage"), database=url, actors=[{}], scheduler={"policy": "fifo-4"})
    assert plan_offline([make("one")], config)[0]["finish_s"] == pytest.approx(before["finish_s"])
    assert not (tmp_path / "elsewhere").exists()
    store = Store(url)
    store.save_profiles({profile_key(place, tiny_base): slow.to_dict()})
    store.close()
    (row,) = plan_offline([make("one")], config)
    assert row["finish_s"] - row["start_s"] == pytest.approx(9.0 * row["steps"])


def test_a_base_model_that_an_earlier_run_described_is_not_described_again(
    tmp_path, make, tiny_description, monkeypatch
):
    monkeypatch.setenv("LORAY_HOME", str(tmp_path / "home"))
    (row,) = plan(tmp_path, [make("one")], [{}]).values()
    assert row["reason"] is None
    assert not (tmp_path / "home").exists()
    remember(replace(tiny_description, parameters=10**15))  # to be told from one that is made anew
    (row,) = plan(tmp_path, [make("one")], [{}]).values()
    assert "with its base model" in row["reason"]


def test_jobs_that_are_there_are_called_by_their_names(make, tiny_description):
    base = tiny_description
    (first,) = listed_places([ActorConfig()], [{"NodeID": "a", "Alive": True, "Resources": {}}])
    (idle,) = with_models([(first.view, first, None)], Profiles(None), {base.ref: base})
    place = replace(idle, base_model=base.ref)
    there = replace(scheduling_view("0abc", make("old"), base, devices=["cpu"]), actor="cpu:0", steps_left=1000)
    seen = ClusterView((there,), (replace(place, state=ActorState.READY),), {base.ref: base})
    (row,) = plan_jobs([make("new")], seen, {base.ref: base}, "fifo-4", {"0abc": "old"})
    assert row["with"] == ["old"]
    assert row["reason"] is row["remark"] is None


def test_what_is_not_forecast_is_no_job_that_can_never_run(tmp_path, make, monkeypatch):
    monkeypatch.setattr("orchestrator.scheduler.forecast._MOST_WORK", 1)
    (row,) = plan(tmp_path, [make("one")], [{}]).values()
    assert row["reason"] is None
    assert row["finish_s"] is None
    assert "was not forecast" in row["remark"]


def test_a_job_on_a_cpu_is_sized_by_the_micro_batches_of_a_cpu(tmp_path, make, tiny_description):
    """Of 8 x 1024 tokens a CPU runs parts of 1024, a CUDA device parts of 2048; the default of a job holds both."""
    job = make("one", per_device_train_batch_size=8, cutoff_len=1024)
    base, roomy = tiny_description, 2**40
    (on_cpu,) = plan(tmp_path, [job], [{"memory_limit": roomy}]).values()
    size = {kind: scheduling_view("", job, base, devices=[kind]) for kind in ("cpu", "cuda:1")}
    assert [view.worst_tokens for view in size.values()] == [1024, 2048]
    both = scheduling_view("", job, base)
    assert {kind: both.size_on(kind) for kind in ("cpu", "cuda")} == {
        kind: (one.adapter_bytes, one.worst_tokens) for kind, one in zip(("cpu", "cuda"), size.values(), strict=True)
    }
    assert on_cpu["adapter_bytes"] == size["cpu"].adapter_bytes < size["cuda:1"].adapter_bytes
    limit = on_cpu["bytes"]
    for bytes_, fits in ((limit, True), (limit - 1, False)):
        (row,) = plan(tmp_path, [job], [{"memory_limit": bytes_}]).values()
        assert (row["reason"] is None) == fits
        gpu = ActorConfig(num_gpus=1, memory_limit=size["cuda:1"].adapter_bytes)  # without room for a base model
        for actors in ([ActorConfig(memory_limit=bytes_)], [ActorConfig(memory_limit=bytes_), gpu]):
            places = listed_places(actors, [{"NodeID": "a", "Alive": True, "Resources": {"GPU": 1}}])
            views = with_models([(place.view, place, None) for place in places], Profiles(None), {base.ref: base})
            assert (_misfits(job, base, views) == []) == fits


def test_a_gpu_keeps_no_masks_of_dropout_but_copies_of_the_adapter(make, tiny_description):
    base, job = tiny_description, make("one", cutoff_len=1000, per_device_train_batch_size=1)
    dropped = job.model_copy(update={"lora": LoraConfig(r=8, lora_dropout=0.1)})
    sizes = {
        (kind, name): scheduling_view("", spec, base, devices=[kind]).adapter_bytes
        for kind in ("cpu", "cuda:0")
        for name, spec in (("plain", job), ("dropped", dropped))
    }
    assert sizes["cpu", "plain"] < sizes["cpu", "dropped"]
    assert sizes["cpu", "plain"] < sizes["cuda:0", "plain"] == sizes["cuda:0", "dropped"] < sizes["cpu", "dropped"]


def test_a_job_that_fits_nowhere_is_told_with_both_numbers(tmp_path, make):
    rows = plan(tmp_path, [make("big", r=4096), make("small")], [{"memory_limit": 700 * 2**20}])
    assert f"({700 * 2**20} bytes)" in rows["big"]["reason"]
    assert rows["big"]["actor"] is None
    assert rows["small"]["reason"] is None


def test_the_first_records_tell_which_columns_are_not_read_and_what_cannot_be_used(tmp_path, make):
    specs = [make("one"), make("named"), make("broken")]
    write_rows(tmp_path / "named.jsonl", [{**row, "source": "x"} for row in token_rows(24, seed=1)])
    write_rows(tmp_path / "broken.jsonl", [{**row, "label": False} for row in token_rows(24, seed=1)])
    rows = plan(tmp_path, specs, [{}])
    assert rows["one"]["remark"] is None
    assert rows["named"]["remark"] == "columns not read: source"
    assert rows["broken"]["remark"].startswith(f"its data cannot be used: {tmp_path / 'broken.jsonl'}:1: label: says")


def test_answers_of_kto_are_as_long_as_samples_and_take_twice_the_work(tmp_path, make, tiny_description):
    base, size = tiny_description, DataSize(100, 30.0)
    settings = {"per_device_train_batch_size": 2, "cutoff_len": 64}
    views = {
        name: scheduling_view("", make(name, objective=name, **settings), base, size=size)
        for name in ("sft", "dpo", "kto")
    }
    assert {name: view.worst_tokens for name, view in views.items()} == {"sft": 128, "dpo": 256, "kto": 128}
    assert {name: view.tokens for name, view in views.items()} == {"sft": 60, "dpo": 60, "kto": 120}


def test_a_base_that_computes_otherwise_in_training_mode_is_said_beside_what_the_data_tell(tmp_path, make, monkeypatch):
    described = replace(describe_base(make("one").base_model), training_mode="its training mode computes other logits")
    monkeypatch.setattr("orchestrator.control.preview.recall_or_describe", lambda *_: described)
    (row,) = plan(tmp_path, [make("one")], [{}]).values()
    assert row["remark"] == "its training mode computes other logits"
