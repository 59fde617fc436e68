"""The simulated clock against closed formulas, the bounds against each other, and the command on the example files."""

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.scheduler.policy import POLICIES
from orchestrator.simulation.bounds import Task, relaxed_bound, unshared_bound
from orchestrator.simulation.devices import load_of
from orchestrator.simulation.simulator import Simulation
from orchestrator.simulation.trace import (
    Profile,
    TraceError,
    TraceJob,
    read_profile,
    read_trace,
    work_of,
    write_trace,
)
from orchestrator.simulation.workload import WorkloadShape, generate
from support.repository import TRACES

PROFILE = Profile(
    name="test",
    step_seconds=0.1,
    token_seconds=1e-4,
    adapter_seconds=0.01,
    memory_bytes=1000,
    base_bytes=300,
    reserve_bytes=100,
    activation_bytes_per_token=0.1,
    microbatch_tokens=1000,
    swap_seconds=3.0,
    base_load_seconds=50.0,
)


def job(name, arrival=0.0, steps=100, tokens=400.0, size=100, base="A", priority=0):
    return TraceJob(
        job=name,
        arrival_s=arrival,
        steps=steps,
        tokens_per_step=tokens,
        adapter_bytes=size,
        base_model=base,
        priority=priority,
    )


def run(jobs, policy, actors=1, profile=PROFILE, **options):
    return Simulation(jobs, [profile] * actors, policy, **options).run()


def test_the_work_of_a_job_is_the_formula_of_the_trace_format():
    work = work_of(job("a", steps=10, tokens=2500.0), PROFILE)
    assert work.added == pytest.approx(1e-4 * 2500 + 2 * 0.1 + 0.01)
    assert work.alone == pytest.approx(10 * (0.1 + work.added))
    assert work.worst_tokens == pytest.approx(2500 / 3)
    assert work.bytes == pytest.approx(100 + 0.1 * 2500 / 3)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_job_alone_takes_its_time_alone(policy):
    outcome = run([job("a", arrival=5.0)], policy)
    assert outcome.turnaround[0] == pytest.approx(100 * (0.1 + 0.05))
    assert (outcome.swaps, outcome.oom, outcome.rejected) == (0, 0, 0)


def test_jobs_that_share_a_step_pay_its_fixed_cost_once():
    """T = a + v + v until the shorter one ends, then a + v."""
    outcome = run([job("a", steps=100), job("b", steps=300)], "fifo-4")
    both, alone = 0.1 + 0.05 + 0.05, 0.1 + 0.05
    assert outcome.turnaround == pytest.approx([100 * both, 100 * both + 200 * alone])


def test_one_after_the_other_waits():
    outcome = run([job("a", steps=100), job("b", steps=300)], "fifo")
    assert outcome.turnaround == pytest.approx([15.0, 60.0])


def test_a_shorter_job_takes_the_place_and_the_longer_one_pays_a_swap():
    outcome = run([job("long", steps=1000), job("short", arrival=10.0, steps=20)], "srpt")
    assert outcome.turnaround == pytest.approx([1000 * 0.15 + 20 * 0.15 + 3.0, 20 * 0.15])
    assert outcome.swaps == 1


def test_another_base_model_is_loaded_when_its_actor_is_idle():
    outcome = run([job("a", base="A"), job("b", base="B")], "fifo-4")
    assert outcome.turnaround == pytest.approx([15.0, 15.0 + 50.0 + 15.0])


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_memory_holds_and_what_can_never_fit_is_rejected(policy):
    jobs = [job(f"j{n}", arrival=float(n), steps=50, size=250) for n in range(8)] + [
        job("giant", arrival=9.0, size=600)
    ]
    outcome = run(jobs, policy, actors=2, record=True)
    assert outcome.rejected == 1
    assert math.isinf(outcome.turnaround[-1])
    assert np.isfinite(outcome.turnaround[:-1]).all()
    assert max(share for points in outcome.memory.values() for _, share in points) <= 1.0
    assert outcome.oom == 0


@pytest.mark.parametrize("seed", range(12))
def test_the_belief_in_steps_decides_who_is_first(seed):
    guess = np.exp(np.random.default_rng(seed).normal(0, 0.5, 2))
    outcome = run([job("a"), job("b")], "srpt", noise=0.5, seed=seed)
    assert outcome.turnaround.argmin() == guess.argmin()


def test_jobs_whose_activations_were_believed_too_small_are_counted_as_out_of_memory():
    """Two of them take 2 * (200 + 108) of 600 bytes. Together they are where the belief has them at 600 or less."""
    profile = PROFILE.model_copy(update={"activation_bytes_per_token": 0.12})
    jobs = [job(name, tokens=900.0, size=200) for name in "ab"]
    found = set()
    for seed in range(20):
        guess = np.exp(np.random.default_rng([seed, 1]).normal(0, 0.5, 2))
        believed = 2 * 200 + 0.12 * np.ceil(np.minimum(900 * guess, 1000)).sum()  # no micro-batch has more than 1000
        for policy in ("fifo-4", "fifo-memory"):
            outcome = run(jobs, policy, noise=0.5, seed=seed, profile=profile)
            assert (outcome.oom, outcome.rejected) == (2 if believed <= 600 else 0, 0)
        assert run(jobs, "fifo", noise=0.5, seed=seed, profile=profile).oom == 0
        found.add(outcome.oom)
    assert found == {0, 2}


def test_admission_by_count_runs_out_of_memory_where_the_look_at_memory_does_not():
    """Three of them fit at a time; four are admitted, and when all of those have ended the other two."""
    jobs = [job(f"j{n}", size=180, tokens=100.0) for n in range(6)]
    assert run(jobs, "fifo-4").oom == 0
    assert run(jobs, "fifo-4", by_count=True).oom == 4
    assert run(jobs[:3], "fifo-4", by_count=True).oom == 0
    assert run([job("giant", size=10_000)], "fifo-4", by_count=True).oom == 1


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_nobody_goes_below_a_bound_and_nobody_is_lost(policy, noise):
    jobs = generate(60, H100, 4, WorkloadShape(load=1.3, bases=2, urgent=0.1), seed=3)
    outcome = Simulation(jobs, [H100] * 4, policy, noise=noise).run()
    assert np.isfinite(outcome.turnaround).all()
    assert (outcome.turnaround >= outcome.alone * (1 - 1e-9)).all()
    tasks = [Task(one.arrival_s, one.steps, work_of(one, H100).added) for one in jobs]
    assert outcome.turnaround.mean() >= relaxed_bound(tasks, H100.step_seconds, 4) * (1 - 1e-9)
    if policy in ("fifo", "srpt"):
        assert outcome.turnaround.mean() >= unshared_bound(tasks, H100.step_seconds, 4) * (1 - 1e-9)


H100 = read_profile(TRACES / "h100-7b.yaml")


def test_the_bounds_of_one_machine_are_exact_where_sharing_cannot_help():
    """Two jobs at once on one actor without a fixed cost: shortest first is the optimum, (1 + 3) / 2."""
    tasks = [Task(0.0, 10, 0.1), Task(0.0, 20, 0.1)]
    assert relaxed_bound(tasks, 0.0, 1) == pytest.approx(2.0)
    assert unshared_bound(tasks, 0.1, 1) == pytest.approx((2.0 + 6.0) / 2)


def test_a_run_is_the_same_again():
    jobs = generate(40, H100, 3, WorkloadShape(load=1.0), seed=1)
    one, two = (Simulation(jobs, [H100] * 3, "cosrpt", noise=0.3, seed=5).run() for _ in range(2))
    assert (one.turnaround == two.turnaround).all()


def test_the_jobs_of_a_grid_come_at_once_and_are_alike():
    jobs = generate(600, H100, 4, WorkloadShape(load=1.2, bases=3, grid=12), seed=4)
    grids = {}
    for one in jobs:
        grids.setdefault(one.arrival_s, []).append(one)
    assert 8 < len(jobs) / len(grids) < 18
    assert all(len({one.base_model for one in grid}) == 1 for grid in grids.values())
    alone = [np.log([work_of(one, H100).alone for one in grid]) for grid in grids.values()]
    assert np.mean([grid.std() for grid in alone]) < 0.4 < np.std([grid.mean() for grid in alone])
    assert len({one.tokens_per_step for one in jobs}) > 500


def test_a_workload_has_the_load_that_was_asked_for_and_survives_a_file(tmp_path):
    jobs = generate(200, H100, 4, WorkloadShape(load=1.4, bases=4, urgent=0.1, runs=5), seed=2)
    assert load_of(jobs, [H100] * 4) == pytest.approx(1.4, rel=1e-3)
    write_trace(tmp_path / "t.csv", jobs)
    assert read_trace(tmp_path / "t.csv") == jobs
    assert {one.priority for one in jobs} == {0, 3}
    assert len({one.base_model for one in jobs}) == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("job,arrival_s\n", "lacks the column steps"),
        ("", "lacks the column job"),
        ("job,arrival_s,steps,tokens_per_step,adapter_bytes,base_model,priority\na,0,0,5,1,A,0\n", "steps"),
        ("job,arrival_s,steps,tokens_per_step,adapter_bytes,base_model\na,0,1,5,1,A\na,1,1,5,1,A\n", "there twice"),
        (
            "job,arrival_s,steps,tokens_per_step,adapter_bytes,base_model\na,0,1,5,1,A,0,\n",
            r"t.csv:2: has more fields than the header \(6\)",
        ),
    ],
)
def test_a_trace_that_cannot_be_used_says_why(tmp_path, text, words):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(TraceError, match=words):
        read_trace(tmp_path / "t.csv")


def test_a_trace_that_a_spreadsheet_wrote_is_read(tmp_path):
    text = "job,arrival_s,steps,tokens_per_step,adapter_bytes,base_model\na,0,1,5,1,A\n"
    (tmp_path / "t.csv").write_text(text, encoding="utf-8-sig")
    assert [job.job for job in read_trace(tmp_path / "t.csv")] == ["a"]


def test_a_profile_with_a_typo_says_so(tmp_path):
    text = (TRACES / "h100-7b.yaml").read_text().replace("step_seconds", "stepp_seconds")
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(TraceError, match="did you mean step_seconds"):
        read_profile(tmp_path / "p.yaml")


# -- the command -------------------------------------------------------------------------------------------------------

SMALL = ["--trace", str(TRACES / "small-2actors-h100-7b.csv"), "--profile", str(TRACES / "h100-7b.yaml"), "--actors"]


def test_the_command_prints_json_and_draws_a_chart(tmp_path):
    chart = tmp_path / "run.svg"
    options = [*SMALL, "2", "--policy", "cosrpt,srpt", "--json", "--gantt", str(chart)]
    done = CliRunner().invoke(app, ["simulate", *options], catch_exceptions=False)
    result = json.loads(done.stdout)
    assert set(result["policies"]) == {"cosrpt", "srpt"}
    assert set(result["policies"]["cosrpt"]) >= {
        *("mean_s", "p50_s", "p95_s", "p99_s", "makespan_s"),
        *("max_slowdown", "swaps_per_job", "decision_ms", "oom_jobs"),
    }
    assert 0 < result["lower_bound_s"] <= result["policies"]["cosrpt"]["mean_s"]
    text = chart.read_text()
    assert text.startswith("<svg")
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    for number in range(12):
        assert f"j{number:05d}: " in text


def test_the_command_tells_of_the_jobs_that_admission_by_count_would_lose(tmp_path):
    (tmp_path / "p.yaml").write_text((TRACES / "h100-7b.yaml").read_text().replace("80000000000", "40000000000"))
    trace = str(TRACES / "bursts-8actors-h100-7b.csv")
    options = ["simulate", "--trace", trace, "--profile", str(tmp_path / "p.yaml"), "--actors", "8"]
    options += ["--policy", "fifo-4"]
    result = json.loads(CliRunner().invoke(app, [*options, "--json"], catch_exceptions=False).stdout)
    lost = result["oom_jobs_by_count"]
    assert 0 < lost <= result["jobs"]
    assert result["policies"]["fifo-4"]["oom_jobs"] == 0
    done = CliRunner().invoke(app, options, env={"COLUMNS": "120"}, catch_exceptions=False)
    assert f"{lost} of {result['jobs']} jobs out of memory" in done.stdout


@pytest.mark.parametrize("width", [80, 120])
def test_the_command_prints_a_table_with_every_policy(width):
    done = CliRunner().invoke(app, ["simulate", *SMALL, "2"], env={"COLUMNS": str(width)}, catch_exceptions=False)
    assert done.exit_code == 0
    assert all(f"\n{name} " in done.stdout for name in POLICIES)
    assert "…" not in done.stdout
    assert ("p99 s" in done.stdout) == (width >= 120)


def test_what_fits_nowhere_and_what_is_beyond_all_measure_is_said_in_words(tmp_path):
    head = "job,arrival_s,steps,tokens_per_step,adapter_bytes,base_model\n"
    (tmp_path / "t.csv").write_text(f"{head}a,0,1{'0' * 280},5,1,A\nbig,0,1,5,{10**15},A\n")
    options = ["--trace", str(tmp_path / "t.csv"), *SMALL[2:], "1"]
    done = CliRunner().invoke(app, ["simulate", *options], env={"COLUMNS": "120"}, catch_exceptions=False)
    assert "1 job of 2 would not fit on" in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 200
    assert "e+27" in done.stdout


def test_an_unknown_policy_is_refused_with_the_names_that_exist():
    done = CliRunner().invoke(app, ["simulate", *SMALL, "2", "--policy", "lifo"])
    assert isinstance(done.exception, TraceError)
    assert "lifo is no policy; allowed: fifo, fifo-4" in str(done.exception)


def test_the_command_takes_devices_that_differ():
    h100, a100 = (str(TRACES / f"{name}-7b.yaml") for name in ("h100", "a100"))
    options = ["simulate", *SMALL[:2], "--policy", "cosrpt", "--actors"]
    done = CliRunner().invoke(app, [*options, f"1:{h100},2:{a100}"], env={"COLUMNS": "200"}, catch_exceptions=False)
    assert "12 jobs, 1 actor of h100-7b and 2 actors of a100-7b, load" in done.stdout
    alike, named = (
        json.loads(CliRunner().invoke(app, [*options, *actors, "--json"], catch_exceptions=False).stdout)
        for actors in (["2", "--profile", h100], [f"2:{h100}"])
    )
    for result in (alike, named):
        result["policies"]["cosrpt"].pop("decision_ms")
    assert alike == named


@pytest.mark.parametrize("actors", ["2", "0:h100.yaml", "x:h100.yaml", "2:h100.yaml,3", "2,", "999999:h100.yaml"])
def test_actors_that_are_not_told_are_asked_for(actors):
    done = CliRunner().invoke(app, ["simulate", *SMALL[:2], "--actors", actors])
    assert isinstance(done.exception, TraceError)
    assert "is not how many of which; give a number with --profile" in str(done.exception)
