"""The benchmarks themselves work: they run and their reports are whole. No timing is judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    file = tmp_path_factory.mktemp("benchmark") / "result.json"
    command = [sys.executable, "benchmarks/cotrain.py", "--quick", "--json", str(file)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(file.read_text())


def test_speed_is_reported_for_both_sides(quick_run):
    printed, result = quick_run
    plain, dropped = result["speed"]
    assert (plain["jobs"], plain["dropout"]) == (2, 0.0)
    assert (dropped["jobs"], dropped["dropout"]) == (2, 0.05)
    for row in result["speed"]:
        assert len(row["loray"]) == len(row["peft"]) == len(row["ratios"]) == result["rounds"]
        assert row["ratio"] == row["loray"][0] / row["peft"][0] > 0
        assert 0.2 < row["padding"] < 0.6
    assert "Real (unpadded) training tokens per second" in printed


def test_memory_counts_processes_side_by_side(quick_run):
    printed, result = quick_run
    rows = {(row["side"], row["processes"]): row for row in result["memory"]}
    assert rows.keys() == {("loray", 1), ("peft", 1), ("peft", 2)}
    one, two = rows["peft", 1], rows["peft", 2]
    assert one["peak"] < two["peak"] < two["resident"]  # two of them, but the mapped files once
    assert one["peak"] > 100 * 2**20  # torch alone takes more
    assert result["memory_ratios"] == {"2": rows["loray", 1]["peak"] / two["peak"]}
    assert "Peak memory in MiB" in printed


def test_both_sides_did_equal_work(quick_run):
    printed, result = quick_run
    equal = result["equal_work"]
    assert equal["ok"]
    assert equal["tolerance"] == 1e-3
    assert 0 <= equal["largest_loss_difference"] < 2e-5  # a tiny model: a wrong learning rate shows in the fifth digit
    assert "Equal work: the losses of all optimizer steps differ by at most" in printed


def test_a_base_model_that_is_not_there_is_named():
    command = [sys.executable, "benchmarks/cotrain.py", "--quick", "--base", "./no-such-model"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "no-such-model" in done.stdout
    assert "make model" in done.stdout


def quick(name, tmp_path, *options):
    """The report of a benchmark's quick run."""
    file = tmp_path / "result.json"
    command = [sys.executable, f"benchmarks/{name}.py", "--quick", "--json", file, *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text())


# What needs no process of its own: one imports torch and transformers for all of them.
TOGETHER = {
    "speed_model": ["--steps", "2"],
    "ask": [],
    "ask_in_training": [],
    "pieces": [],
    "roofline": ["--jobs", "1"],
    "crossover": [],
    "scale": [],
}
RUN_ALL = """
import json, runpy, sys
programs = json.loads(sys.argv[1])
sys.path.insert(0, "benchmarks")
for name, options in programs.items():
    sys.argv = [name, *options]
    try:
        runpy.run_path(f"benchmarks/{name}.py", run_name="__main__")
    except SystemExit as end:
        if end.code:
            sys.exit(f"{name} ended with {end.code}")
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The reports of quick runs, by the name of the benchmark."""
    folder = tmp_path_factory.mktemp("reports")
    programs = {name: ["--quick", "--json", str(folder / name), *more] for name, more in TOGETHER.items()}
    command = [sys.executable, "-c", RUN_ALL, json.dumps(programs)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: json.loads((folder / name).read_text()) for name in TOGETHER}


def test_every_target_of_the_scheduler_is_measured(tmp_path):
    trace = ["--trace", "configs/traces/small-2actors-h100-7b.csv", "--profile", "configs/traces/h100-7b.yaml"]
    rows = {row["what"]: row["measured"] for row in quick("scheduling/schedule", tmp_path, *trace, "--actors", "2")}
    for workload in ("seeded", "on 16 actors", "grids", "recorded"):
        assert rows[f"mean turnaround / relaxed lower bound, {workload}, all"] >= 1.0
        assert rows[f"largest slowdown / its lower bound, {workload}, all"] >= 1.0
        assert 0.1 < rows[f"mean turnaround / fifo-4, {workload}, all"] < 1.1
    assert rows["mean turnaround, devices that differ / lower bound"] >= 1.0
    assert 1.0 <= rows["exact small instances, mean"] <= rows["exact small instances, worst"] < 1.2


def test_memory_is_predicted_and_measured(tmp_path):
    (row,) = quick("memory", tmp_path)["rows"]
    assert row["measured"] > row["idle"] > 2**27
    assert len(row["steps"]) >= 10
    assert 0.5 < row["first"] / row["measured"] < 2.0
    assert 0.8 < row["fitted"] / row["measured"] < 1.2


def test_the_coefficients_of_a_step_are_fitted(reports):
    (row,) = reports["speed_model"]
    assert row["steps"] >= 8
    assert min(row["a"], row["b"], row["c"]) >= 0
    assert row["a"] + row["b"] > 0


def test_answers_are_those_of_peft(reports):
    rows = reports["ask"]["rows"]
    assert [row["what"] for row in rows] == [
        "1 answer",
        "8 answers, one adapter",
        "8 answers, 8 adapters",
        "32 answers, 8 adapters",
    ]
    assert all(row["equal"] == 1.0 and row["ratios"][0] > 0 for row in rows)


def test_what_answers_cost_training_is_told(reports):
    result = reports["ask_in_training"]
    assert min(result["alone"], result["asked"], result["answers"]) > 0


def test_pieces_are_timed_in_turn(reports):
    result = reports["pieces"]
    assert [row["what"] for row in result["elementwise"]] == ["norm", "rotary embedding", "SwiGLU"]
    products = {row["what"]: row for row in result["products"]}
    assert products.keys() >= {"32 rows, down, forward", "32 rows, all of a model, backward"}
    assert len(products) == 10
    assert all(min(row["first"], row["second"], row["ratio"]) > 0 for part in result.values() for row in part)
    assert products["32 rows, all of a model, forward"]["first"] > 30 * products["32 rows, down, forward"]["first"]


def test_products_are_a_share_of_a_step(reports):
    result = reports["roofline"]
    assert sum(result["shares"].values()) == pytest.approx(1.0)
    assert min(result["shares"].values()) > 0.02
    assert result["speed_over_peft"] > 0


def test_the_gain_of_sharing_is_measured_by_the_tokens_of_a_job(reports):
    (row,) = reports["crossover"]
    assert set(row["gains"]) >= {"8", "128"}  # which is larger is a matter of the machine's load
    assert min(row["gains"].values()) > 0
    assert row["budget"] >= 128


def test_one_more_adapter_costs_time_and_no_kernel(reports):
    (result,) = reports["scale"]
    rows = {row["axis"]: row for row in result["rows"]}
    assert rows.keys() == {"adapters", "rank", "tokens"}
    assert all(min(row["seconds"]) > 0 and row["of_a_step"] for row in rows.values())
    assert [row["kernels"] for row in rows.values()] == [0.0, 0.0, 0.0]  # one product for all, whatever their number


def test_peers_that_are_installed_here_train_the_same(tmp_path):
    result = quick("peers", tmp_path, "--only", "trainer", "flattening", "--no-memory")
    rows = result["rows"]
    assert [row["peer"] for row in rows] == ["PEFT + Trainer", "PEFT + Trainer, flattening collator"]
    for row in rows:
        assert row["same_steps"]
        assert 0 <= row["loss"] < 2e-5  # transformers 5 sees from the positions where a sample begins, with sdpa too
        assert min(row["speed"], row["speed_of_processor"]) > 0
        assert min(row["their_peak"], row["our_peak"]) > 100 * 2**20


def test_what_moved_between_two_files_is_shown(tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    for file, values in (old, {"stays": 1.0, "grows": 2.0, "gone": 1.0}), (new, {"stays": 1.01, "grows": 3.0}):
        file.write_text(json.dumps({"figures": {"roofline": values}, "failed": []}))
    command = [sys.executable, "benchmarks/suite.py", "--compare", old, new]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    rows = [line.replace("│", " ").split() for line in done.stdout.splitlines() if "roofline" in line]
    assert rows == [["roofline", "grows", "2", "3", "+50%"], ["roofline", "gone", "1", "-"]]


# what a bare machine with a card does not have; psutil only a CPU's memory is asked of
MISSING = ("ray", "bitsandbytes", "peft", "accelerate", "sqlalchemy", "typer", "rich")


def gpu_run(file, *options, missing=()):
    """The results of the card's benchmark on this CPU, where some packages cannot be imported."""
    script = f"import runpy, sys\nsys.modules.update(dict.fromkeys({missing!r}))\n"
    script += "sys.path.insert(0, 'benchmarks')\nrunpy.run_path('benchmarks/gpu.py', run_name='__main__')"
    command = [sys.executable, "-c", script, "--quick", "--json", str(file), *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    return [json.loads(row) for row in file.read_text().splitlines()]


def test_every_part_of_the_cards_benchmark_runs(tmp_path):
    rows = gpu_run(tmp_path / "rows.jsonl")
    parts = {"card", "equal", "isolation", "kernels", "speed", "processes", "fit", "memory", "oom", "nf4"}
    assert {row["part"] for row in rows} == parts
    assert not [row for row in rows if row["what"] in ("error", "deadline")]
    by_name = {row["what"]: row for row in rows}
    assert by_name["engine and PEFT, float32"]["loss_difference"] < 1e-5
    assert 0.99 < by_name["engine and PEFT, bfloat16"]["cosine"] < 1.0
    assert (
        by_name["alone and in company, float32"]["distance"] == 0.0 < by_name["alone and in company, float32"]["noise"]
    )
    assert by_name["speed, 8 jobs of mixed lengths"]["padding"] > 0.2
    assert by_name["memory that runs out"]["long"] == "succeeded"


def test_the_cards_benchmark_needs_nothing_but_torch_and_the_engine(tmp_path):
    rows = gpu_run(tmp_path / "rows.jsonl", "--part", "equal", "--part", "nf4", missing=MISSING)
    by_name = {row["what"]: row for row in rows}
    assert by_name["engine and PEFT, float32"]["value_difference"] < 1e-4  # its arithmetic, written out
    assert "not installed" in by_name["nf4"]["skipped"]


def test_kernels_are_counted(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import count_kernels

    peft = count_kernels.row_of("1 x 4", "PEFT", count_kernels.peft_step)
    rows = {
        name: count_kernels.row_of(
            "4 x 1",
            name,
            lambda layers, products=products: count_kernels.loray_step(layers, 4, 1, 0.0, products),
        )
        for name, products in count_kernels.OPERATORS.items()
    }
    apart, looped, grouped = rows.values()
    assert peft.attention == 2
    assert apart.attention == looped.attention == grouped.attention == 8
    assert apart.layer > looped.layer > grouped.layer > 0
    assert grouped.layer - grouped.attention <= 120
    assert all(row.step > 32 * row.layer - 100 for row in (peft, apart, looped, grouped))


@pytest.mark.parametrize("name", ["live", "scheduling/early_stop", "actor", "actor_start", "observability"])
def test_what_takes_too_long_for_a_test_can_at_least_be_started(name):
    command = [sys.executable, f"benchmarks/{name}.py", "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "--help" in done.stdout
