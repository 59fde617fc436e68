"""What Ray and the orchestrator cost: the same jobs by `loray run`, and by the bare engine in a plain process, in turn.

    python benchmarks/actor.py             SmolLM2-135M-Instruct (after `make model`), a few minutes
    python benchmarks/actor.py --quick     a tiny random model, half a minute: does the benchmark itself work?

README.md beside this file says how each number is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import yaml
from common import workload
from common.watch import Watch
from rich.console import Console
from rich.table import Table

_HERE = Path(__file__).resolve()
_POLL_S = 0.1
_TRAINING, _ORCHESTRATOR = "training", "the orchestrator"


@dataclass(frozen=True)
class Window:
    """What one side did while all jobs trained: from the last one's first step to the first one's end.

    Where jobs are over before others begin: from the first step of any of them to the last.

    Attributes:
        seconds: How long that was.
        rate: Real tokens per second of wall-clock time: the sum over jobs, each from its first step in it to its last.
        processor: Processor seconds of each kind of process; `training` is the one that trains.
        losses: Of every optimizer step of every job, those outside the window included.
    """

    seconds: float
    rate: float
    processor: Mapping[str, float]
    losses: list[list[float]]

    @property
    def work(self) -> float:
        """Real tokens per processor second of the process that trains."""
        return self.rate / self.cores(_TRAINING)

    def cores(self, kind: str) -> float:
        """Processor seconds per second that a kind of process takes."""
        return self.processor.get(kind, 0.0) / self.seconds


def main() -> int:
    """Measure and print; the exit code says whether both sides computed the same."""
    parser = argparse.ArgumentParser(description="Measure what Ray and the orchestrator cost.")
    parser.add_argument("--quick", action="store_true", help="a tiny random model; the numbers mean little")
    parser.add_argument("--jobs", type=int, default=4, help="jobs trained together (at most 8)")
    parser.add_argument("--threads", type=int, help="of the training process (default: one per core, --quick: 1)")
    parser.add_argument("--steps", type=int, help="optimizer steps of each job")
    parser.add_argument("--rounds", type=int, help="times that both sides take their turns")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    arguments = parser.parse_args()
    workload.quiet()
    steps = arguments.steps or (30 if arguments.quick else 15)
    rounds = arguments.rounds or (1 if arguments.quick else 2)
    threads = arguments.threads or (1 if arguments.quick else os.cpu_count() or 1)
    load = os.getloadavg()[0]
    runs: dict[str, list[Window]] = {"engine": [], "actor": []}
    with tempfile.TemporaryDirectory(prefix="lr", dir="/tmp") as name:
        base = workload.tiny_base(Path(name)) if arguments.quick else workload.DEMO_BASE
        for number in range(rounds):
            for side in sorted(runs, reverse=number % 2 == 0):
                print(f"round {number + 1} of {rounds}: {side}", flush=True)
                runs[side].append(_run(side, Path(name, f"{side}-{number}"), base, arguments.jobs, steps, threads))
    result = _result(runs, load)
    _print(result, f"{base}, {arguments.jobs} jobs, {threads} threads")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if result["equal"] else 1


# -- one run of one side ---------------------------------------------------------------------------------------------


def _run(side: str, folder: Path, base: str, count: int, steps: int, threads: int) -> Window:
    """Train the jobs in processes of their own, and watch these."""
    jobs = workload.make_jobs(folder, _vocabulary(base), range(count), steps)
    make_command = _engine_command if side == "engine" else _actor_command
    command = make_command(folder, base, jobs, threads)
    environment = {**os.environ, "PYTHONPATH": str(_HERE.parent.parent), "HF_HUB_OFFLINE": "1"}
    environment.pop("OMP_NUM_THREADS", None)
    with Path(folder, "output").open("wb") as output:
        process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=folder)
        watch = _watch(process)
    if process.returncode:
        raise RuntimeError(f"{side} ended with {process.returncode}:\n{Path(folder, 'output').read_text()[-3000:]}")
    return _window(jobs, watch)


def _engine_command(folder: Path, base: str, jobs: Sequence[workload.Job], threads: int) -> list[str]:
    path = folder / "specs.json"
    path.write_text(json.dumps([job.spec.model_dump(mode="json") for job in jobs]))
    return [sys.executable, str(_HERE), "--engine", base, str(path), str(threads)]


def _actor_command(folder: Path, base: str, jobs: Sequence[workload.Job], threads: int) -> list[str]:
    files = []
    for job in jobs:
        fields = job.spec.model_dump(mode="json", exclude={"job_id"}, exclude_unset=True)
        files.append(folder / f"{job.spec.name}.yaml")
        files[-1].write_text(yaml.safe_dump({**fields, "base_model": base}))
    cluster = folder / "cluster.yaml"
    settings = {
        "storage": str(folder / "storage"),
        "actors": [{"cpu_threads": threads}],
        "scheduler": {"policy": "fifo-memory"},  # all jobs together, as the other side has them
    }
    cluster.write_text(yaml.safe_dump(settings))
    return [sys.executable, "-m", "orchestrator", "run", "--cluster", str(cluster), *map(str, files)]


def _vocabulary(base: str) -> int:
    from gpu_actor.model.describe import describe_base

    return describe_base(base).vocab_size


def train(base: str, specs: Path, threads: int) -> None:
    """The bare engine's process: every job from the first shared batch on."""
    from common import loray_loop

    from gpu_actor.contract.config import AdapterSpec
    from gpu_actor.training.trainer import CoTrainer

    workload.quiet()
    workload.set_threads(threads)
    model = loray_loop.load_loray(base)
    trainer = CoTrainer(model)
    for fields in json.loads(specs.read_text()):
        trainer.attach(loray_loop.make_tenant(model, workload.Job(AdapterSpec(**fields), [])))
    while not trainer.idle:
        trainer.step()


# -- watching --------------------------------------------------------------------------------------------------------


def _watch(process: psutil.Popen) -> Watch:
    """What a process and all that come from it do until it ends."""
    watch = Watch(_kind)
    while process.poll() is None:
        watch.look([process])
        time.sleep(_POLL_S)
    return watch


def _kind(command: Sequence[str]) -> str:
    line = " ".join(command)
    if "--engine" in command or line.startswith("ray::GpuActor"):
        return _TRAINING
    if line.startswith("ray::Controller"):
        return _ORCHESTRATOR
    return "the command" if "orchestrator" in command and "run" in command else "Ray"


def _window(jobs: Sequence[workload.Job], watch: Watch) -> Window:
    rows = [
        [json.loads(line) for line in Path(job.spec.output_dir, "metrics.jsonl").read_text("utf-8").splitlines()]
        for job in jobs
    ]
    firsts, lasts = [one[0]["time"] for one in rows], [one[-1]["time"] for one in rows]
    if max(firsts) < min(lasts):
        start, end = max(firsts), min(lasts)
        rate = sum(_rate([row for row in one if start <= row["time"] <= end]) for one in rows)
    else:
        start, end = min(firsts), max(lasts)
        rate = sum(row["tokens"] for one in rows for row in one) / (end - start)
    return Window(end - start, rate, watch.between(start, end), [[row["loss"] for row in one] for one in rows])


def _rate(rows: Sequence[Mapping[str, Any]]) -> float:
    """Tokens per second of one job from the first of some steps to the last."""
    if len(rows) < 2:
        raise RuntimeError("the jobs trained together for too few steps; give more with --steps")
    return float(sum(row["tokens"] for row in rows[1:]) / (rows[-1]["time"] - rows[0]["time"]))


# -- results ---------------------------------------------------------------------------------------------------------


def _result(runs: Mapping[str, Sequence[Window]], load: float) -> dict[str, Any]:
    engine, actor = runs["engine"], runs["actor"]
    pairs = list(zip(engine, actor, strict=True))
    kinds = sorted({kind for run in actor for kind in run.processor} - {_TRAINING})
    return {
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "tokens_per_s": {side: [run.rate for run in of] for side, of in runs.items()},
        "tokens_per_processor_s": {side: [run.work for run in of] for side, of in runs.items()},
        "wall_ratio": median(ours.rate / plain.rate for plain, ours in pairs),
        "processor_ratio": median(ours.work / plain.work for plain, ours in pairs),
        "beside": {kind: median(run.cores(kind) for run in actor) for kind in kinds},
        "equal": all(plain.losses == ours.losses for plain, ours in pairs),
    }


def _print(result: Mapping[str, Any], title: str) -> None:
    console = Console(highlight=False)
    table = Table(title=f"{title}; load {result['load_before']:.1f} before, {result['load_after']:.1f} after")
    for heading in ("real tokens", "bare engine", "loray run", "loray run / bare engine"):
        table.add_column(heading, justify="left" if heading == "real tokens" else "right")
    for name, values, ratio in (
        ("per second", "tokens_per_s", "wall_ratio"),
        ("per processor second of the training process", "tokens_per_processor_s", "processor_ratio"),
    ):
        sides = [f"{median(result[values][side]):.1f}" for side in ("engine", "actor")]
        table.add_row(name, *sides, f"{result[ratio]:.3f}")
    console.print(table)
    for kind, cores in result["beside"].items():
        share = cores / result["cores"]
        console.print(f"beside the training, {kind} takes {cores:.3f} of a core: {share:.1%} of {result['cores']}")
    same = "the same to the bit" if result["equal"] else "NOT THE SAME"
    console.print(f"Equal work: the losses of all optimizer steps are {same}.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--engine"]:
        train(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        sys.exit(main())
