"""What experiment trackers get of a job: each row once, one run whatever happens to the job, and its end."""

import json
import os
import threading
from importlib import import_module

import pytest

from gpu_actor.training.metrics import trim_metrics
from orchestrator.jobs.output_folder import discard_run
from orchestrator.jobs.states import JobState
from orchestrator.tracking.following import Following
from orchestrator.tracking.metric_rows import MetricRows
from orchestrator.tracking.tracker import RunIdentity, TrackedJob
from support import tracker_runs
from support.trackio_server import on_the_server, report, trackio_server

PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb", "trackio": "trackio"}
SETTINGS = {"name": "demo", "lora": {"r": 8, "target_modules": ["q_proj"]}, "base_model": "o/m"}


@pytest.fixture(params=["tensorboard", *(pytest.param(name, marks=pytest.mark.slow) for name in list(PACKAGES)[1:])])
def tracker(request, tmp_path, monkeypatch):
    pytest.importorskip(PACKAGES[request.param], reason=f"pip install 'loray[{request.param}]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB__STATS_SAMPLING_INTERVAL", "0.1")  # if it looked at the machine, it would do so here
    (tmp_path / "out").mkdir()
    (tmp_path / "storage").mkdir()
    return Tracked(request.param, tmp_path)


class Tracked:
    """A job, its metrics, and what one tracker has of it."""

    def __init__(self, name, folder):
        self.name, self.storage, self.out = name, folder / "storage", folder / "out"
        self.open_run = import_module(f"orchestrator.tracking.{name}_run").open_run

    def attempt(self, number, state=JobState.RUNNING, reason=None):
        job = TrackedJob("01abc", "demo", number, str(self.out), SETTINGS, (self.name,), state, reason)
        return Following(job, self.name, self.open_run, self.storage)

    def write(self, first, last, *, late=0.0):
        with (self.out / "metrics.jsonl").open("a") as file:
            for step in range(first, last + 1):
                row = {"step": step, "epoch": step / 4, "loss": 1 / step, "rewards/margins": 0.5, "learning_rate": 1e-3}
                row |= {"grad_norm": 2.0, "tokens": 100, "time": 1.7e9 + 0.5 * step + late}
                file.write(json.dumps(row) + "\n")
                if step % 5 == 0:
                    row = {"step": step, "epoch": step / 4, "eval_loss": 2 / step, "eval_rewards/margins": 0.25}
                    file.write(json.dumps({**row, "time": 1.7e9 + 0.5 * step + late}) + "\n")

    def runs(self):
        """By run, what it has under each name, in the order of the steps."""
        found = getattr(tracker_runs, self.name)(self.storage, self.out)
        return {run: {name: sorted(values) for name, values in tags.items()} for run, tags in found.items()}


def test_a_job_that_dies_and_goes_on_is_one_run_without_a_doubled_step(tracker):
    first = tracker.attempt(1)
    tracker.write(1, 7)
    assert first.go_on() is False
    tracker.write(8, 12)
    with (tracker.out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')  # its actor was killed while it wrote
    first.go_on()
    assert not [thread for thread in threading.enumerate() if "_monitor_loop" in thread.name]  # Trackio's
    first.close()
    trim_metrics(tracker.out, 9)  # the next one goes on from the checkpoint of step 9
    second = tracker.attempt(2)
    tracker.write(10, 11, late=60.0)
    second.go_on()
    tracker.write(12, 16, late=60.0)
    assert second.go_on() is False
    second.close()  # and the process that reports is another one
    assert tracker.attempt(2, JobState.FAILED, "the loss became nan").go_on() is True

    ((name, run),) = tracker.runs().items()
    assert run["train/loss"] == [(step, pytest.approx(1 / step)) for step in range(1, 17)]
    assert run["eval/loss"] == [(step, pytest.approx(2 / step)) for step in (5, 10, 15)]
    assert run["train/rewards/margins"][0] == (1, 0.5)
    assert run["eval/rewards/margins"][0] == (5, 0.25)
    speeds = dict(run["train/tokens_per_second"])
    assert sorted(speeds) == list(range(2, 17))
    assert [speeds[step] for step in (2, 12, 16)] == pytest.approx([200, 200, 200])
    end = {"tensorboard": [(16, "FAILED: the loss became nan")], "mlflow": ["FAILED"], "wandb": ["FAILED"]}
    settings = {"tensorboard": '"r": 8' in run.get("job", [(0, "")])[0][1], "trackio": True}  # trackio: its own table
    assert settings.get(tracker.name) or [str(value) for value in run["r"]] == ["8"]
    assert run["state"] == end.get(tracker.name, [(16, "FAILED")])
    assert "of the machine" not in run

    tracker.write(17, 18)
    third = tracker.attempt(3)  # retried from its checkpoint
    third.go_on()
    third.close()
    ((again, run),) = tracker.runs().items()
    assert again == name
    assert [step for step, _ in run["train/loss"]] == list(range(1, 19))

    discard_run(str(tracker.out))  # retried from the start
    tracker.write(1, 3)
    fourth = tracker.attempt(4, JobState.SUCCEEDED)
    assert fourth.go_on() is True
    both = tracker.runs()
    (new,) = both.keys() - {name}
    assert new.endswith("-4")
    assert [step for step, _ in both[new]["train/loss"]] == [1, 2, 3]


def test_what_a_tracker_does_not_take_waits_and_goes_once(tmp_path):
    (tmp_path / "out").mkdir()
    tracked = Tracked("tensorboard", tmp_path)
    (tmp_path / "out" / "tensorboard").write_text("in the way")
    following = tracked.attempt(1)
    tracked.write(1, 4)
    for _ in range(3):
        with pytest.raises(OSError, match="tensorboard"):
            following.go_on()
    os.remove(tmp_path / "out" / "tensorboard")
    tracked.write(5, 6)
    following.go_on()
    following.close()
    assert [step for step, _ in tracked.runs()["tensorboard"]["train/loss"]] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_trackio_server_gets_every_row_of_jobs_that_train_at_once(tmp_path):
    pytest.importorskip("trackio", reason="pip install 'loray[trackio]'")
    with trackio_server(tmp_path) as address:
        report(tmp_path, address, jobs=3)
        assert on_the_server(tmp_path) == {f"job-{number}-0{number}": list(range(1, 10)) for number in range(3)}


@pytest.mark.slow
def test_mlflow_gets_what_waits_in_one_request_and_knows_it_again(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="pip install 'loray[mlflow]'")
    (tmp_path / "out").mkdir()
    (tmp_path / "storage").mkdir()
    tracked = Tracked("mlflow", tmp_path)
    log_batch, answers = mlflow.MlflowClient.log_batch, iter(["lost", "here", "here"])

    def with_the_answer(self, *arguments, metrics=(), **others):
        log_batch(self, *arguments, metrics=metrics, **others)
        if metrics and next(answers) == "lost":
            raise ConnectionError("no answer")

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", with_the_answer)
    following = tracked.attempt(1)
    tracked.write(1, 30)
    with pytest.raises(ConnectionError):
        following.go_on()
    following.go_on()  # the same again
    tracked.write(31, 40)
    following.go_on()
    following.close()
    assert next(answers, "none left") == "none left"
    ((_, run),) = tracked.runs().items()
    assert [step for step, _ in run["train/loss"]] == list(range(1, 41))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")  # files would have them twice
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert tracked.open_run(RunIdentity("02", "demo", tracked.out, tracked.storage, SETTINGS)).most_at_once == 1


@pytest.mark.parametrize("again", ["", "longer than the first time "])
def test_rows_that_are_written_again_between_two_looks_are_all_read(tmp_path, again):
    """The file is as long as before, or longer: where reading stopped lies in the midst of another row now."""
    file = tmp_path / "metrics.jsonl"

    def write(steps, words):
        file.write_text("".join(json.dumps({"step": n, "time": 1.0, "words": words}) + "\n" for n in steps))

    rows = MetricRows(file)
    write(range(1, 11), "")
    assert [row["step"] for row in rows.more()] == list(range(1, 11))
    assert rows.more() == []
    write(range(1, 13), again)
    new = [row["step"] for row in rows.more()]
    assert new == (list(range(1, 13)) if again else [11, 12])
    file.write_text("")
    assert rows.more() == []
    write(range(1, 3), "")
    assert [row["step"] for row in rows.more()] == [1, 2]
