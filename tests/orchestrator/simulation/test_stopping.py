"""Early stop on the simulated clock, against closed formulas: the rules are the engine's and the grids' own."""

import json

import pytest
from typer.testing import CliRunner

from gpu_actor.contract.config import EarlyStopConfig
from orchestrator.cli.app import app
from orchestrator.scheduler.policy import POLICIES
from orchestrator.simulation.early_stop import StoppingSimulation
from orchestrator.simulation.loss_curves import draw_curves
from orchestrator.simulation.simulator import Simulation
from orchestrator.simulation.trace import TraceJob, read_profile, write_trace
from orchestrator.simulation.workload import WorkloadShape, generate
from support.repository import TRACES

H100 = read_profile(TRACES / "h100-7b.yaml").model_copy(update={"swap_seconds": 0.0})
HALVE = EarlyStopConfig(halving_steps=50, halving_keep=0.5)
STEP = H100.step_seconds + H100.speed.added(1000, H100.microbatch_tokens)  # of a job alone
ADDED = STEP - H100.step_seconds


def jobs(count, steps=400, grid="g", arrival=0.0):
    same = {"arrival_s": arrival, "steps": steps, "tokens_per_step": 1000, "adapter_bytes": 0, "base_model": "b"}
    return [TraceJob(job=f"j{n}", grid=grid, **same) for n in range(count)]


def level(count, steps=400):
    """Losses that stay what they are; the first job's are the best."""
    return {f"j{n}": [{"step": step, "loss": 1.0 + n} for step in range(1, steps + 1)] for n in range(count)}


def play(some, actors, policy="fifo", rules=HALVE, curves=None):
    curves = level(len(some)) if curves is None else curves
    return StoppingSimulation(some, [H100] * actors, policy, rules, curves).run_and_count()


def test_the_worse_half_stops_at_each_rung():
    found = play(jobs(4), actors=4)
    assert found.outcome.turnaround == pytest.approx([400 * STEP, 100 * STEP, 50 * STEP, 50 * STEP])
    assert set(found.reasons) == {"j1", "j2", "j3"}
    assert "at step 50 its loss 4 is number 4 of 4" in found.reasons["j3"]
    assert found.steps_saved == pytest.approx((300 + 350 + 350) / 1600)
    assert (found.grids, found.best_lost) == (1, 0)


def test_who_is_known_to_be_worse_while_it_waits_stops_as_soon_as_it_trains_again():
    """Two jobs on one actor; the second is urgent and takes the place of the first, which has passed its rung."""
    first, second = jobs(2)
    second = second.model_copy(update={"arrival_s": 60 * STEP, "priority": 9})
    found = play([second, first], actors=1, policy="srpt", curves={"j0": level(2)["j1"], "j1": level(2)["j0"]})
    assert found.reasons.keys() == {"j0"}
    assert found.outcome.turnaround == pytest.approx([400 * STEP, 460 * STEP])


def test_jobs_in_company_stop_as_well_and_the_others_go_faster():
    found = play(jobs(2), actors=1, policy="fifo-4")
    assert found.outcome.turnaround == pytest.approx([50 * (STEP + ADDED) + 350 * STEP, 50 * (STEP + ADDED)])


@pytest.mark.parametrize("field", ["patience", "diverged_above"])
def test_a_job_stops_by_its_own_losses(field):
    """The evaluation loss rises from step 100 on, every 50 steps; the training loss leaps at step 150."""
    rows = [{"step": step, "loss": 1.0 if step < 150 else 1e6} for step in range(1, 401)]
    rows += [{"step": step, "eval_loss": 1.0 + abs(step - 100)} for step in range(50, 401, 50)]
    rows.sort(key=lambda row: row["step"])
    stops_at = {"patience": 250, "diverged_above": 150}[field]
    rules = EarlyStopConfig(**{field: 3})
    found = play(jobs(1, grid=None), actors=1, rules=rules, curves={"j0": rows})
    assert found.outcome.turnaround == pytest.approx([stops_at * STEP])
    assert field.split("_")[0] in {"patience": "patience stopped early", "diverged_above": "diverged"}[field]
    assert play(jobs(1), actors=1, rules=EarlyStopConfig(), curves={"j0": rows}).reasons == {}


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_without_rules_nothing_changes_and_with_them_no_job_is_lost(policy):
    some = generate(60, H100, 3, WorkloadShape(load=1.4, grid=6, seconds=200), seed=1)
    plain = Simulation(some, [H100] * 3, policy).run()
    curves = draw_curves(some, 1)
    same = StoppingSimulation(some, [H100] * 3, policy, EarlyStopConfig(), curves).run_and_count()
    assert same.outcome.turnaround.tolist() == plain.turnaround.tolist()
    assert (same.reasons, same.steps_saved) == ({}, 0.0)
    rules = EarlyStopConfig(patience=4, diverged_above=2.0, halving_steps=20)
    found = StoppingSimulation(some, [H100] * 3, policy, rules, curves).run_and_count()
    assert found.reasons.keys() < {job.job for job in some}
    assert {"d", "s"} == {reason[0] for reason in found.reasons.values()}
    assert found.outcome.turnaround.max() < float("inf")
    assert found.outcome.turnaround.mean() < plain.turnaround.mean()


def test_the_command_tells_what_early_stop_saves_with_recorded_losses(tmp_path):
    write_trace(tmp_path / "t.csv", jobs(4))
    for name, rows in level(4).items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rules.yaml").write_text("halving_steps: 50\n")
    options = ["simulate", "--trace", str(tmp_path / "t.csv"), "--profile", str(TRACES / "h100-7b.yaml")]
    options += ["--actors", "4", "--policy", "fifo", "--early-stop", str(tmp_path / "rules.yaml")]
    done = CliRunner().invoke(app, [*options, "--losses", str(tmp_path), "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)["early_stop"]["fifo"]
    assert found["stopped_jobs"] == 3
    assert found["ratio_to_all_steps"] == pytest.approx(600 / 1600)
    drawn = CliRunner().invoke(app, options, env={"COLUMNS": "80"}, catch_exceptions=False)
    assert "best stopped" in drawn.stdout
    (tmp_path / "rules.yaml").write_text("halving_step: 50\n")
    assert "did you mean halving_steps" in str(CliRunner().invoke(app, options).exception)
