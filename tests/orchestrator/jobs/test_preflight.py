"""What is found before anything starts: files that are missing or wrong, and places that are taken."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.jobs.job import JobSpec
from orchestrator.jobs.preflight import check_files, check_roots

Make = Callable[..., JobSpec]


def adapter(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"], **config})
    )
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    return folder


def model(folder: Path, *weights: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for name in weights or ("model.safetensors",):
        (folder / name).write_bytes(b"x")
    return folder


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes jobs whose files are all in order but for what a test changes."""
    (tmp_path / "d.jsonl").write_text('{"text": "x"}\n')
    base = model(tmp_path / "base")

    def make(name: str = "demo", **changes: Any) -> JobSpec:
        return JobSpec(
            **{
                "name": name,
                "base_model": str(base),
                "dataset": {"path": str(tmp_path / "d.jsonl")},
                "output_dir": str(tmp_path / "out" / name),
                **changes,
            }
        )

    return make


def only(jobs: list[JobSpec]) -> tuple[str, str]:
    [problem] = check_files(jobs)
    return problem.field, problem.message


def test_a_job_in_order(make: Make, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    start = adapter(tmp_path / "start")
    jobs = [make("a"), make("b", output_dir=str(tmp_path / "empty")), make("c", lora={"init_adapter": str(start)})]
    assert check_files(jobs) == []


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("no.jsonl", None, "does not exist"),
        ("d.txt", "x", "ends in '.txt'; allowed: .jsonl, .json, .csv, .parquet"),
        ("e.json", "", "is empty"),
        ("", None, "is a folder"),
        ("d.jsonl/x.jsonl", None, "does not exist"),
        ("pipe.jsonl", None, "is a device or a pipe"),
    ],
)
def test_data_that_cannot_be_used(make: Make, tmp_path: Path, file: str, content: str | None, words: str):
    os.mkfifo(tmp_path / "pipe.jsonl")
    if content is not None:
        (tmp_path / file).write_text(content)
    field, message = only([make(dataset={"path": f"{tmp_path}/{file}".rstrip("/")})])
    assert field == "dataset.path"
    assert words in message


@pytest.mark.parametrize(
    ("dataset", "training", "field", "words"),
    [
        ({"split": "test"}, {}, "dataset", "split: only data sets of the hub have this; remove it for a file"),
        ({"format": "preference"}, {}, "dataset.format", "training.objective is sft, which learns from samples"),
        ({"format": "text"}, {"objective": "dpo"}, "dataset.format", "objective is dpo, which learns from pairs"),
        (
            {"format": "preference"},
            {"objective": "kto"},
            "dataset.format",
            "objective is kto, which learns from single",
        ),
        ({"format": "text"}, {"objective": "kto"}, "dataset.format", "objective is kto, which learns from answers to"),
        ({"chat_template": "/no.jinja"}, {}, "dataset.chat_template", "'/no.jinja' does not exist"),
    ],
)
def test_data_that_does_not_fit(
    make: Make, tmp_path: Path, dataset: dict[str, Any], training: dict[str, Any], field: str, words: str
):
    found = only([make(dataset={"path": str(tmp_path / "d.jsonl"), **dataset}, training=training)])
    assert found[0] == field
    assert words in found[1]


def test_data_that_is_no_single_file(make: Make, tmp_path: Path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    template = str(tmp_path / "t.jinja")
    jobs = [
        make("a", dataset={"path": str(tmp_path / "saved"), "chat_template": template, "split": "train"}),
        make("b", dataset={"path": "org/data", "name": "x", "format": "preference"}, training={"objective": "orpo"}),
    ]
    assert check_files(jobs) == []
    assert check_roots(jobs, [str(tmp_path)]) == []
    outside = make(dataset={"path": "org/data", "chat_template": "/etc/t.jinja"})
    assert [problem.field for problem in check_roots([outside], [str(tmp_path)])] == ["dataset.chat_template"]


def test_a_library_that_is_not_installed_is_named(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "d.parquet").write_bytes(b"x")
    monkeypatch.setattr("orchestrator.jobs.data_checks.find_spec", lambda name: None)
    for path, library in (("org/data", "datasets"), (str(tmp_path / "d.parquet"), "pyarrow")):
        field, message = only([make(dataset={"path": path})])
        assert field == "dataset.path"
        assert message.endswith(f"needs the library `{library}`: pip install loray[data]")


def folder_of(kind: str, folder: Path) -> None:
    if kind == "file":
        folder.write_text("x")
    elif kind != "missing":
        model(folder)
    if kind == "no config":
        (folder / "config.json").unlink()
    elif kind == "broken config":
        (folder / "config.json").write_text('{"a": ')
    elif kind == "list":
        (folder / "config.json").write_text("[]")
    elif kind == "adapter":
        shutil.rmtree(folder)
        adapter(folder)
    if kind in ("no weights", "pickle", "adapter weights"):
        name = {"pickle": "pytorch_model.bin", "adapter weights": "adapter_model.safetensors"}.get(kind, "x.txt")
        (folder / "model.safetensors").rename(folder / name)
    if kind == "shard":
        index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if kind == "broken index":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "does not exist"),
        ("file", "is a file"),
        ("no config", "lacks config.json"),
        ("broken config", "config.json' cannot be read as JSON"),
        ("list", "is not a JSON object"),
        ("adapter", "give it as lora.init_adapter"),
        ("no weights", "lacks weights (*.safetensors)"),
        ("adapter weights", "lacks weights"),
        ("pickle", "has pickled weights only (pytorch_model.bin), which can run code"),
        ("shard", "lacks model-2.safetensors"),
        ("broken index", "names no weights"),
    ],
)
def test_a_folder_that_is_no_model(make: Make, tmp_path: Path, kind: str, words: str):
    folder_of(kind, tmp_path / "m")
    field, message = only([make(base_model=str(tmp_path / "m"))])
    assert field == "base_model"
    assert words in message


def test_pickled_weights_pass_when_the_operator_allows_them(make: Make, tmp_path: Path):
    job = make(base_model=str(model(tmp_path / "m", "pytorch_model.bin")))
    assert "the operator sets allow_pickle: true" in only([job])[1]
    assert check_files([job], allow_pickle=True) == []


def test_gguf_files(make: Make, tmp_path: Path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "a.gguf").write_bytes(b"GGUF....")
    assert check_files([make(base_model=str(folder))]) == []
    assert check_files([make(base_model=str(folder / "a.gguf"))]) == []
    assert "there is no such file" in only([make(base_model=str(folder / "c.gguf"))])[1]
    (folder / "b.gguf").write_bytes(b"....")
    assert "holds 2 GGUF files (a.gguf, b.gguf); name one of them" in only([make(base_model=str(folder))])[1]
    assert "'b.gguf' is no GGUF file" in only([make(base_model=str(folder / "b.gguf"))])[1].replace(
        str(folder) + "/", ""
    )


def test_a_hub_id_is_left_to_the_hub_unless_it_is_cut_off(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LORAY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    job = make(base_model="org/name")
    assert check_files([job]) == []

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    field, message = only([job])
    assert field == "base_model"
    assert "hf download org/name" in message

    cached = tmp_path / "cache" / "models--org--name"
    snapshot = model(cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    assert check_files([job]) == []
    (snapshot / "model.safetensors").unlink()
    assert "lacks weights" in only([job])[1]

    model(tmp_path / "home" / "models" / "org" / "name")
    assert check_files([job]) == []


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"peft_type": "IA3"}, "lora.init_adapter", "has the peft_type 'IA3'; allowed: 'LORA', 'VERA'"),
        ({"peft_type": "VERA"}, "lora.init_adapter", "has lora_alpha 8, which is not known to Loray"),
        ({"r": 16}, "lora.r", "8 differs: the adapter in"),
        ({"r": None}, "lora.init_adapter", "lacks r"),
        ({"init_lora_weights": "pissa_niter_4"}, "lora.init_adapter", "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "eva"}, "lora.init_adapter", "has init_lora_weights 'eva', which PEFT has and Loray"),
        (
            {"modules_to_save": ["lm_head"]},
            "lora.init_adapter",
            "has modules_to_save ['lm_head'], which is PEFT's word for training whole modules",
        ),
        (
            {"bias": "lora_only"},
            "lora.init_adapter",
            "has bias 'lora_only', which is PEFT's word for training the base's biases",
        ),
        ({"from_the_future": 3}, "lora.init_adapter", "has from_the_future 3, which is not known to Loray"),
    ],
)
def test_a_start_adapter_of_another_shape(make: Make, tmp_path: Path, change: dict[str, Any], field: str, words: str):
    start = adapter(tmp_path / "start", **change)
    found, message = only([make(lora={"init_adapter": str(start)})])
    assert found == field
    assert words in message


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("adapter_config.json", "lacks adapter_config.json"),
        ("adapter_model.safetensors", "lacks adapter_model.safetensors; adapter_model.bin is a pickle"),
        (".", "does not exist"),
    ],
)
def test_a_start_adapter_that_is_none(make: Make, tmp_path: Path, missing: str, words: str):
    start = adapter(tmp_path / "start")
    (start / "adapter_model.bin").write_bytes(b"x")
    if missing == ".":
        shutil.rmtree(start)
    else:
        (start / missing).unlink()
    field, message = only([make(lora={"init_adapter": str(start)})])
    assert field == "lora.init_adapter"
    assert words in message
    field, message = only([make(training={"objective": "dpo", "reference_adapter": str(start)})])
    assert field == "training.reference_adapter"
    assert words in message


def test_an_output_folder_that_is_taken(make: Make, tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    field, message = only([make(output_dir=str(tmp_path / "full"))])
    assert field == "output_dir"
    assert message.endswith("is not empty; choose another folder, or remove this one")
    assert "is a file" in only([make(output_dir=str(tmp_path / "d.jsonl"))])[1]
    assert "is a file" in only([make(output_dir=str(tmp_path / "dangling"))])[1]
    assert "d.jsonl', which is no folder" in only([make(output_dir=str(tmp_path / "d.jsonl" / "a" / "b"))])[1]


def test_relative_paths_are_refused(make: Make):
    problems = check_files([make(dataset={"path": "d.jsonl"}, base_model="./m", output_dir="out")])
    assert {problem.field for problem in problems} == {"dataset.path", "base_model", "output_dir"}
    assert all("is not an absolute path" in problem.message for problem in problems)


@contextlib.contextmanager
def powerless() -> Iterator[None]:
    """Drops root's rights, for whom every file is open."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_files_that_this_user_may_not_use(make: Make, tmp_path: Path):
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        base = model(folder / "base")
        locked = folder / "locked"
        locked.mkdir()
        (folder / "d.jsonl").write_text("x")
        (folder / "d.jsonl").chmod(0)
        locked.chmod(0)
        closed = make("b", base_model=str(locked / "m"), dataset={"path": str(locked / "d.jsonl")}, output_dir="/x/y")
        with powerless():
            job = make(base_model=str(base), dataset={"path": str(folder / "d.jsonl")}, output_dir=f"{locked}/o")
            problems = {problem.field: problem.message for problem in check_files([job])}
            hidden = {problem.field: problem.message for problem in check_files([closed])}
        assert "may not be read by this user" in problems["dataset.path"]
        assert set(problems) == {"dataset.path", "output_dir"}
        assert set(hidden) == {"dataset.path", "base_model", "output_dir"}
    finally:
        locked.chmod(0o700)
        shutil.rmtree(folder)


def test_doubles_among_the_jobs(make: Make, tmp_path: Path):
    link = tmp_path / "link"
    (tmp_path / "out").mkdir()
    link.symlink_to(tmp_path / "out")
    jobs = [
        make("a"),
        make("a", output_dir=str(tmp_path / "x")),
        make("b", output_dir=f"{link}/a"),
        make("c", output_dir=f"{tmp_path}/out/a/c"),
    ]
    problems = [str(problem) for problem in check_files(jobs)]
    assert problems == [
        "job a: name: 'a' is given to 2 of these jobs; give each its own name",
        f"job b: output_dir: '{link}/a' is also the output folder of job a; give each job its own",
        f"job c: output_dir: '{tmp_path}/out/a/c' lies inside the output folder of job b; give each job its own",
    ]


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=3), min_size=2, max_size=6))
def test_crossing_folders_are_those_that_are_equal_or_nested(places: list[list[str]]):
    jobs = [
        JobSpec(name=f"j{n}", base_model="gpt2", dataset={"path": "/no.jsonl"}, output_dir="/no/" + "/".join(place))  # type: ignore[arg-type]
        for n, place in enumerate(places)
    ]
    crossing = any(a[: len(b)] == b for i, a in enumerate(places) for j, b in enumerate(places) if i != j)
    assert any("the output folder of" in problem.message for problem in check_files(jobs)) == crossing


def test_what_many_jobs_share_is_told_once(make: Make):
    jobs = [make(f"j{n}", dataset={"path": "/no.jsonl"}) for n in range(1000)]
    [problem] = check_files(jobs)
    assert problem.source == "job j0 and 999 others"


def test_what_is_allowed_is_said_once(make: Make):
    jobs = [make(f"j{n}", output_dir=f"/out/{n}", dataset={"path": f"/data/{n}"}) for n in range(9)]
    problems = check_roots(jobs, ["/one", "/two"], ["/three"])
    assert len(problems) == 2 * 9 + 1  # they share a base model
    assert [p.field for p in problems if "below /one, /two" in p.message] == ["dataset.path"]
    assert [p.field for p in problems if "below /three" in p.message] == ["output_dir"]
    assert problems[0].message.startswith("'/data/0' is outside the allowed folders; allowed: below /one, /two")
    assert problems[-1].message == "'/out/8' is outside the allowed folders"


def test_paths_must_lie_below_the_allowed_folders(make: Make, tmp_path: Path):
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "way-out").symlink_to(tmp_path)
    start = adapter(tmp_path / "start")
    job = make(output_dir=f"{inside}/way-out/o", dataset={"path": f"{inside}/d"}, lora={"init_adapter": str(start)})
    problems = {problem.field: problem.message for problem in check_roots([job], [str(inside)])}
    assert set(problems) == {"output_dir", "lora.init_adapter", "base_model"}
    assert f"leads to {tmp_path}/o and is outside the allowed folders" in problems["output_dir"]
    assert check_roots([job], []) == []
    assert check_roots([job], [str(tmp_path)]) == []
    assert check_roots([job], [str(inside), f"{tmp_path}/"]) == []
    climbing = make(output_dir=f"{inside}/../o", dataset={"path": f"{inside}-not/d"}, base_model="org/name")
    assert {problem.field for problem in check_roots([climbing], [str(inside)])} == {"output_dir", "dataset.path"}
