"""Which jobs of a halved grid stop, from a real store and their own metrics.jsonl."""

import json
from pathlib import Path

import pytest

from gpu_actor.contract.config import DatasetConfig, EarlyStopConfig, TrainingConfig
from orchestrator.control import job_verbs
from orchestrator.control.grid_stops import GridStops
from orchestrator.jobs.job import JobSpec
from orchestrator.jobs.states import JobState
from orchestrator.store.records import Wish
from orchestrator.store.store import Store

TOTAL = 40
RULES = EarlyStopConfig(halving_steps=10, group="g")


class Grid:
    """Jobs of one request in a store; `at` brings one past its steps with a loss."""

    def __init__(self, folder, names):
        self.store = Store(f"sqlite:///{folder}/jobs.db")
        self.live = {}
        specs = [
            JobSpec(
                name=name,
                base_model="org/m",
                dataset=DatasetConfig(path="/d.jsonl"),
                training=TrainingConfig(max_steps=TOTAL),
                early_stop=RULES,
                output_dir=str(folder / name),
            )
            for name in names
        ]
        self.ids = {job.name: job.id for job in self.store.add(specs, "r")}
        self.stops = GridStops(self.store)

    def start(self, *names):
        for name in names:
            self.store.assign(self.ids[name], "actor", "boot")

    def at(self, name, step, loss):
        job = self.store.get(self.ids[name])
        Path(job.output_dir).mkdir(exist_ok=True)
        rows = [{"step": n, "loss": loss} for n in range(1, step + 1)]
        (Path(job.output_dir) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.live[job.id] = {"step": step, "total_steps": TOTAL}

    def due(self):
        names = {job_id: name for name, job_id in self.ids.items()}
        return {names[job_id] for job_id in self.stops.due(self.live)}


@pytest.fixture
def grid(tmp_path):
    return Grid(tmp_path, ["a", "b", "c"])


def test_the_worst_stops_and_is_named_once(grid):
    grid.start("a", "b", "c")
    for name, loss in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
        grid.at(name, 12, loss)
    assert grid.due() == {"c"}
    assert grid.due() == set()


def test_a_job_that_ends_before_the_rung_decides_about_the_others(grid):
    grid.start("a", "b")
    grid.at("a", 12, 1.0)
    grid.at("b", 12, 2.0)
    assert grid.due() == set()  # of three, two pass
    job_verbs.cancel(grid.store, grid.store.get(grid.ids["c"]))  # it still waited: nobody runs past a rung by that
    assert grid.due() == {"b"}  # of two, one passes


def test_a_job_that_starts_over_is_judged_by_its_new_losses(grid):
    grid.start("a", "b", "c")
    grid.at("a", 12, 1.0)
    grid.at("b", 12, 3.0)
    grid.at("c", 5, 2.0)
    assert grid.due() == set()
    grid.store.move(grid.ids["b"], JobState.FAILED, "lost")
    job = grid.store.get(grid.ids["b"])
    job_verbs.retry(grid.store, job, job_verbs.checkpoint_to_retry(job, from_start=True))
    grid.start("b")
    grid.at("b", 12, 0.5)
    grid.at("c", 12, 2.0)
    assert grid.due() == {"c"}


def test_a_stop_that_came_while_another_wish_was_under_way_is_not_forgotten(grid):
    grid.start("a", "b", "c")
    job_verbs.pause(grid.store, grid.store.get(grid.ids["c"]))
    for name, loss in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
        grid.at(name, 12, loss)
    assert grid.due() == set()
    job_verbs.resume(grid.store, grid.store.get(grid.ids["c"]))
    assert grid.due() == {"c"}


def test_a_job_that_was_taken_off_meanwhile_stops_when_it_runs_again(grid):
    grid.start("a", "b", "c")
    grid.store.wish(grid.ids["c"], Wish.YIELD, "is taken off")
    for name, loss in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
        grid.at(name, 12, loss)
    assert grid.due() == set()
    grid.store.move(grid.ids["c"], JobState.QUEUED, "taken off")
    assert grid.due() == set()
    grid.start("c")
    assert grid.due() == {"c"}


def test_other_requests_and_jobs_that_are_not_halved_are_let_be(grid, tmp_path):
    other = Grid(tmp_path / "other", [])
    assert other.due() == set()
    grid.store.add([JobSpec(**{**grid.store.jobs()[0].spec.model_dump(), "name": "d", "output_dir": "/d"})], "r2")
    grid.start("a", "b", "c")
    for name, loss in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
        grid.at(name, 12, loss)
    assert grid.due() == {"c"}


def test_a_grid_that_an_earlier_loray_accepted_is_still_read(grid):
    """Rules that are refused today stand in older job tables."""
    spec = grid.store.jobs()[0].spec
    with grid.store._engine.begin() as connection:
        old = spec.model_dump(mode="json")
        old["early_stop"] |= {"group": None, "min_delta": 0.5}
        grid.store._set(connection, grid.ids["a"], {"spec": old})
    grid.store._specs.clear()
    grid.start("a", "b")
    assert grid.store.get(grid.ids["a"]).spec.early_stop.group is None
    assert grid.due() == set()
