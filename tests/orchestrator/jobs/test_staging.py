"""What a job has in Ray's package folder is brought to safety; everything else is left as it is."""

from pathlib import Path

import pytest

from gpu_actor.contract.errors import InvalidJobError
from orchestrator.jobs.job import JobSpec
from orchestrator.jobs.staging import package_root, stage_jobs


@pytest.fixture
def package(tmp_path):
    """A folder as Ray unpacks it, with a data set, an adapter and a base model."""
    root = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123456789abcdef"
    for folder in ("data", "adapter", "model"):
        (root / folder).mkdir(parents=True)
    (root / "data" / "a.jsonl").write_text("one\n")
    (root / "adapter" / "adapter_config.json").write_text("{}")
    (root / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (root / "model" / "config.json").write_text("{}")
    return root


def job(folder, **changes):
    fields = {
        "name": "a",
        "base_model": "org/model",
        "dataset": {"path": f"{folder}/data/a.jsonl"},
        "output_dir": f"{folder}/out/a",
    }
    return JobSpec.model_validate({**fields, **changes})


def staged(jobs, storage):
    return stage_jobs(jobs, storage, str(storage / "outputs"))


def test_a_job_outside_of_any_package_is_untouched(tmp_path):
    before = job(tmp_path, base_model="/models/x", lora={"init_adapter": "/adapters/y"})
    after, remarks = staged([before], tmp_path / "storage")
    assert after == [before]
    assert remarks == []
    assert not (tmp_path / "storage").exists()


def test_a_reference_adapter_is_copied_too(package, tmp_path):
    training = {"objective": "dpo", "reference_adapter": f"{package}/adapter"}
    (after,), _ = stage_jobs(
        [job(package, training=training)], tmp_path / "storage", str(tmp_path / "storage" / "outputs")
    )
    reference = Path(after.training.reference_adapter)
    assert reference.parents[1] == tmp_path / "storage" / "uploads"
    assert (reference / "adapter_model.safetensors").read_bytes() == b"weights"


def test_inputs_are_copied_and_the_output_goes_to_the_storage(package, tmp_path):
    storage = tmp_path / "storage"
    before = job(package, base_model=f"{package}/model", lora={"r": 4, "init_adapter": f"{package}/adapter"})
    (after,), (remark,) = staged([before], storage)
    assert after.output_dir == str(storage / "outputs" / "out" / "a")
    data, adapter, model = map(Path, (after.dataset.path, after.lora.init_adapter, after.base_model))
    assert data.read_text() == "one\n"
    assert (adapter / "adapter_model.safetensors").read_bytes() == b"weights"
    assert (model / "config.json").read_text() == "{}"
    assert {path.parents[1] for path in (data, adapter, model)} == {storage / "uploads"}
    assert (data.name, adapter.name, model.name) == ("a.jsonl", "adapter", "model")
    assert after.lora.r == 4  # nothing else has changed
    assert (
        after.model_copy(
            update={
                "output_dir": before.output_dir,
                "dataset": before.dataset,
                "lora": before.lora,
                "base_model": before.base_model,
            }
        )
        == before
    )
    assert str(storage / "outputs") in remark
    assert "3 of its files" in remark


def test_a_hub_id_stays_and_a_template_is_copied(package, tmp_path):
    (package / "chat.jinja").write_text("{{ messages }}")
    before = job(package, dataset={"path": "org/data", "chat_template": f"{package}/chat.jinja"})
    (after,), _ = staged([before], tmp_path / "s")
    assert after.dataset.path == "org/data"
    assert Path(after.dataset.chat_template).read_text() == "{{ messages }}"
    assert Path(after.dataset.chat_template).is_relative_to(tmp_path / "s")
    inline = job(package, dataset={"path": "org/data", "chat_template": "{{ x }}"})
    assert staged([inline], tmp_path / "s")[0][0].dataset.chat_template == "{{ x }}"


def test_the_same_content_is_kept_once(package, tmp_path):
    first, _ = staged([job(package)], tmp_path / "s")
    second, _ = staged([job(package), job(package, name="b")], tmp_path / "s")
    assert {spec.dataset.path for spec in [*first, *second]} == {first[0].dataset.path}
    assert len(list((tmp_path / "s" / "uploads").iterdir())) == 1
    (package / "data" / "a.jsonl").write_text("two\n")
    (third,), _ = staged([job(package)], tmp_path / "s")
    assert Path(third.dataset.path).read_text() == "two\n"
    assert Path(first[0].dataset.path).read_text() == "one\n"


def test_a_changed_name_inside_a_folder_is_another_content(package, tmp_path):
    with_adapter = job(package, lora={"init_adapter": f"{package}/adapter"})
    (first,), _ = staged([with_adapter], tmp_path / "s")
    (package / "adapter" / "adapter_config.json").rename(package / "adapter" / "config.json")
    (second,), _ = staged([with_adapter], tmp_path / "s")
    assert first.lora.init_adapter != second.lora.init_adapter


def test_no_half_copy_is_left_behind(package, tmp_path):
    (package / "data" / "a.jsonl").unlink()
    with pytest.raises(InvalidJobError, match=r"job 'a': .*a\.jsonl cannot be copied"):
        staged([job(package)], tmp_path / "s")
    stage_jobs(
        [job(package, dataset={"path": f"{package}/adapter/adapter_config.json"})],
        tmp_path / "s",
        str(tmp_path / "s" / "outputs"),
    )
    assert not list((tmp_path / "s").rglob(".draft-*"))


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/r/working_dir_files/_ray_pkg_1/a/b", "/r/working_dir_files/_ray_pkg_1"),
        ("/r/working_dir_files/_ray_pkg_1", "/r/working_dir_files/_ray_pkg_1"),
        ("/r/working_dir_files/s3_bucket_x/a", "/r/working_dir_files/s3_bucket_x"),
        ("/r/working_dir_files/_ray_pkg_1/../../a", None),
        ("/r/working_dir_files", None),
        ("/home/me/_ray_pkg_1/a", None),
    ],
)
def test_where_a_package_starts(path, root):
    assert package_root(path) == (Path(root) if root else None)
