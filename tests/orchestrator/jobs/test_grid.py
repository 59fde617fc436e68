"""Grids: every combination is a job with a name and a folder of its own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.jobs.job import JobFileError
from orchestrator.jobs.job_file import jobs_from_mapping

MINIMAL: dict[str, Any] = {
    "name": "demo",
    "base_model": "org/model",
    "dataset": {"path": "d.jsonl"},
    "output_dir": "out",
}


def mistakes(**changes: Any) -> dict[str, str]:
    with pytest.raises(JobFileError) as caught:
        jobs_from_mapping({**MINIMAL, **changes}, "x", Path("/nowhere"))
    return {problem.field: problem.message for problem in caught.value.problems}


def test_a_grid_in_written_order_with_readable_names(tmp_path: Path):
    grid = {"lora.r": [8, 16], "training.learning_rate": [1e-4, 2e-5], "lora.target_modules": [["q_proj", "v_proj"]]}
    jobs = jobs_from_mapping({**MINIMAL, "grid": grid}, "x", tmp_path)
    assert [job.name for job in jobs] == [
        "demo-r8-lr0.0001-targets_q.v",
        "demo-r8-lr2e-05-targets_q.v",
        "demo-r16-lr0.0001-targets_q.v",
        "demo-r16-lr2e-05-targets_q.v",
    ]
    assert jobs[1].output_dir == str(tmp_path / "out" / "r8-lr2e-05-targets_q.v")
    assert [(job.lora.r, job.training.learning_rate) for job in jobs] == [(8, 1e-4), (8, 2e-5), (16, 1e-4), (16, 2e-5)]


def test_grid_values_that_look_alike_get_different_names(tmp_path: Path):
    grid = {"dataset.path": ["a/x.jsonl", "b/x.jsonl"], "lora.target_modules": [["q" * 60], ["q" * 61]]}
    names = [job.name for job in jobs_from_mapping({**MINIMAL, "grid": grid}, "x", tmp_path)]
    assert names[0] == "demo-data_v1-targets_v1"
    assert len(set(names)) == 4


def test_suffixes_that_would_read_the_same_are_numbers_instead(tmp_path: Path):
    grid = {"dataset.path": ["a", "a-targets_b"], "lora.target_modules": [["c"], ["b-targets_c"]]}
    names = [job.name for job in jobs_from_mapping({**MINIMAL, "grid": grid}, "x", tmp_path)]
    assert names == ["demo-1", "demo-2", "demo-3", "demo-4"]


def test_long_names_fall_back_to_numbers(tmp_path: Path):
    spec = {**MINIMAL, "name": "n" * 124, "grid": {"training.learning_rate": [1e-4, 2e-4]}}
    assert [job.name[124:] for job in jobs_from_mapping(spec, "x", tmp_path)] == ["-1", "-2"]
    problem = mistakes(name="n" * 127, grid={"lora.r": [1, 2]})
    assert "has 127 characters" in problem["name"]


AXES = {
    "lora.r": st.integers(1, 4096),
    "lora.lora_alpha": st.floats(0.001, 1e6),
    "lora.use_rslora": st.booleans(),
    "lora.target_modules": st.lists(st.text("abcde._-", min_size=1), min_size=1, unique=True) | st.just("all-linear"),
    "dataset.path": st.text(min_size=1).filter(lambda text: text.isprintable() and not text.startswith("~")),
    "training.max_steps": st.none() | st.integers(1, 10),
    "queue.priority": st.integers(-100, 100),
}
GRIDS = st.fixed_dictionaries(
    {}, optional={key: st.lists(v, min_size=1, max_size=4, unique_by=repr) for key, v in AXES.items()}
)


@given(GRIDS.filter(bool), st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}", fullmatch=True))
def test_a_grid_is_a_product_with_unique_names(grid: dict[str, list[Any]], name: str):
    assume(math.prod(map(len, grid.values())) <= 300)
    jobs = jobs_from_mapping({**MINIMAL, "name": name, "grid": grid}, "x", Path("/nowhere"))
    assert len(jobs) == math.prod(map(len, grid.values()))
    assert len({job.name.lower() for job in jobs}) == len(jobs)
    assert len({job.output_dir.lower() for job in jobs}) == len(jobs)
    assert all(Path(job.output_dir).parent == Path("/nowhere/out") for job in jobs)


def test_mistakes_in_a_grid(tmp_path: Path):
    found = mistakes(
        grid={
            "lora.rr": [1],
            "lora": [{}],
            "name": ["a"],
            "lr": [1],
            "lora.r": [8, "x", 0],
            "lora.lora_alpha": [],
            "queue.priority": 5,
            "training.seed": [1, 1],
        },
    )
    assert "did you mean lora.r?" in found["grid.lora.rr"]
    assert "is a section" in found["grid.lora"]
    assert "cannot vary" in found["grid.name"]
    assert "did you mean training.learning_rate?" in found["grid.lr"]
    assert found["grid.lora.r"].startswith("0 is out of range; allowed: a whole number from 1 to 4096")
    assert found["grid.lora.lora_alpha"].startswith("[] is not a list of values")
    assert found["grid.queue.priority"].endswith("such as [5]")
    assert found["grid.training.seed"] == "1 is given twice; keep one"
    assert "dataset.path" not in found


def test_settings_that_do_not_go_together_in_one_combination(tmp_path: Path):
    found = mistakes(grid={"training.max_steps": [1, 10], "training.warmup_steps": [0, 5]})
    assert found == {"training": "warmup_steps (5) must not exceed max_steps (1)"}


def test_a_grid_can_give_what_the_job_lacks(tmp_path: Path):
    lacking = {key: value for key, value in MINIMAL.items() if key != "base_model"}
    jobs = jobs_from_mapping({**lacking, "grid": {"base_model": ["gpt2", "org/b"]}}, "x", tmp_path)
    assert [job.base_model for job in jobs] == ["gpt2", "org/b"]


def test_too_many_combinations_are_refused_before_they_are_made(tmp_path: Path):
    """To make them would take hours."""
    numbers = list(range(2, 1002))
    grid = {"training.seed": numbers, "training.cutoff_len": numbers, "training.save_steps": numbers}
    found = mistakes(grid=grid)
    assert found == {"grid": "makes 1,000,000,000 jobs; allowed: up to 10,000 in a file; give fewer values"}
