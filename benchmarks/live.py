"""Live against simulated: jobs of a few base models on two CPU actors of a real Ray cluster, under three policies.

    python benchmarks/live.py [--bases N] [--gantt FILE.svg] [--json FILE]

Prints the measured mean turnarounds, their ratios to that of the first policy, how many actors had to load a base
model, and what the scheduler's own forecast says of the same arrivals: given the speed that was fitted when the jobs
began, and given the one at their end. About eight minutes on two cores, which should be idle; the load of the machine
stands beside the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from common import workload

os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parent.parent))  # for the processes of Ray
os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads it when it is imported
os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "90")  # seconds that a busy machine may take to start Ray
os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "90")
os.environ.setdefault("RAY_worker_niceness", "0")  # a busy machine must not starve the actors
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import ray

from gpu_actor.contract.config import DatasetConfig, LoraConfig, TrainingConfig
from gpu_actor.contract.description import BaseDescription
from gpu_actor.model.describe import describe_base
from orchestrator.cluster.cluster_config import ClusterConfig
from orchestrator.cluster.connection import controller
from orchestrator.cluster.places import HEAD, listed_places
from orchestrator.control.job_needs import scheduling_view
from orchestrator.control.launch import start_local
from orchestrator.jobs.job import JobSpec
from orchestrator.knowledge.data_size import guess_size
from orchestrator.knowledge.place_models import with_models
from orchestrator.knowledge.profiles import Profiles
from orchestrator.report.timeline_chart import draw
from orchestrator.scheduler.forecast import forecast
from orchestrator.scheduler.view import ActorState, ActorView, ClusterView
from orchestrator.store.store import Store

POLICIES = ("fifo-4", "srpt", "cosrpt")
_JOBS, _SEED = 16, 0
_MEDIAN_STEPS, _SPREAD, _LEAST_STEPS, _MOST_STEPS = 70, 1.0, 10, 400  # log-normal
_MEAN_GAP_S = 1.5  # between two arrivals
_WARM_UP = [(30, 4), (20, 8), (12, 2)]  # (steps, batch size) on each base model: tokens and adapters vary
_PATIENCE_S = 900
_ACTORS = [{"cpu_threads": 1}, {"cpu_threads": 1}]


@dataclass(frozen=True)
class Arrival:
    """A job of the workload: the number of its base model, optimizer steps, and when it comes (s)."""

    base: int
    steps: int
    at: float


def main() -> int:
    """Run the policies and print."""
    parser = argparse.ArgumentParser(description="Mean turnaround on a real cluster against the forecast.")
    parser.add_argument("--bases", type=int, default=2, metavar="N", help="base models (2)")
    parser.add_argument("--gantt", type=Path, metavar="FILE.svg", help="draw the run under cosrpt")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    arguments = parser.parse_args()
    workload.quiet()
    jobs = _workload(arguments.bases)
    result: dict[str, Any] = {"jobs": len(jobs), "load_before": os.getloadavg()[0], "policies": {}}
    with tempfile.TemporaryDirectory(prefix="lr", dir="/tmp") as name:
        folder = Path(name)
        bases = [_save_base(folder / f"base-{seed}", seed) for seed in range(arguments.bases)]
        descriptions = {base: describe_base(base) for base in bases}
        for policy in POLICIES:
            result["policies"][policy] = _run(folder, policy, jobs, bases, descriptions, arguments.gantt)
            print(_line(policy, result["policies"][policy]), flush=True)
    first, *others = POLICIES
    result["load_after"] = os.getloadavg()[0]
    for policy in others:
        found, reference = result["policies"][policy], result["policies"][first]
        ratio = {key: found[key] / reference[key] for key in ("measured_s", "forecast_before_s", "forecast_s")}
        found["ratio"] = ratio
        print(
            f"{policy} / {first}: {ratio['measured_s']:.2f} measured; forecast {ratio['forecast_before_s']:.2f} "
            f"by the profile before, {ratio['forecast_s']:.2f} by the one after"
        )
    print(
        f"load of the machine {result['load_before']:.1f} before, {result['load_after']:.1f} after, "
        f"{os.cpu_count()} cores"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _workload(count: int) -> list[Arrival]:
    """Jobs of so many base models, of heavy-tailed sizes, that come faster than they are trained; from a seed."""
    random = np.random.default_rng(_SEED)
    steps = np.clip(_MEDIAN_STEPS * np.exp(_SPREAD * random.standard_normal(_JOBS)), _LEAST_STEPS, _MOST_STEPS)
    times = np.cumsum(random.exponential(_MEAN_GAP_S, _JOBS))
    bases = random.integers(0, count, _JOBS)
    return [Arrival(int(b), round(float(n)), float(t)) for b, n, t in zip(bases, steps, times, strict=True)]


def _line(policy: str, row: dict[str, Any]) -> str:
    forecasts = [
        f"{row[key]:.1f} s by the profile {when} ({row[key] / row['measured_s'] - 1:+.1%})"
        for key, when in (("forecast_before_s", "before"), ("forecast_s", "after"))
    ]
    return (
        f"{policy}: mean turnaround {row['measured_s']:.1f} s measured; forecast {', '.join(forecasts)}; "
        f"{row['taken_off']} jobs were taken off; {row['loads']} actors had them, with a base model each; all done "
        f"after {row['makespan_s']:.0f} s"
    )


def _save_base(folder: Path, seed: int) -> str:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512, hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def _spec(folder: Path, name: str, base: str, steps: int, batch: int = 4) -> JobSpec:
    random = np.random.default_rng(zlib.crc32(name.encode()))
    rows = [random.integers(3, 500, int(n)).tolist() for n in random.integers(20, 60, 64)]
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps({"input_ids": row, "labels": row}) + "\n" for row in rows))
    return JobSpec(
        name=name,
        base_model=base,
        dataset=DatasetConfig(path=str(data), format="tokens"),
        lora=LoraConfig(r=8),
        training=TrainingConfig(max_steps=steps, per_device_train_batch_size=batch, cutoff_len=64, save_steps=10_000),
        output_dir=str(folder / "out" / name),
    )


def _run(
    folder: Path,
    policy: str,
    jobs: list[Arrival],
    bases: list[str],
    descriptions: dict[str, BaseDescription],
    chart: Path | None,
) -> dict[str, Any]:
    """One policy on a cluster of its own: warm up, then the jobs at their times."""
    own = folder / policy
    config = ClusterConfig(
        storage=str(own / "storage"), actors=_ACTORS, scheduler={"policy": policy, "tick_seconds": 0.25}
    )
    specs = [_spec(own, f"j{n:02d}", bases[job.base], job.steps) for n, job in enumerate(jobs)]
    with start_local(config):
        orchestrator = controller()
        warm = [
            _spec(own / "warm", f"warm-{base}-{n}", bases[base], steps, batch)
            for base in range(len(bases))
            for n, (steps, batch) in enumerate(_WARM_UP)
        ]
        _submit(orchestrator, warm)
        _wait(orchestrator, {spec.name for spec in warm})
        hosted = [actor["base_model"] or None for actor in ray.get(orchestrator.cluster.remote())["actors"]]
        before = _forecast(config, policy, jobs, specs, descriptions, hosted)
        started = time.time()
        for spec, job in zip(specs, jobs, strict=True):
            time.sleep(max(0.0, started + job.at - time.time()))
            _submit(orchestrator, [spec])
        done = _wait(orchestrator, {spec.name for spec in specs})
        names = {job["id"]: job["name"] for job in done}
        told = ray.get(orchestrator.timeline.remote(list(names)))
    if chart is not None and policy == POLICIES[-1]:
        chart.write_text(draw(told, names, f"{len(done)} jobs under {policy}"), encoding="utf-8")
    return {
        "measured_s": mean(job["finished_at"] - job["submitted_at"] for job in done),
        "forecast_before_s": before,
        "forecast_s": _forecast(config, policy, jobs, specs, descriptions, hosted),
        "makespan_s": max(job["finished_at"] for job in done) - started,
        "loads": _actors_used(config, names),
        "taken_off": len(told["stays"]) - len(done),
        "turnaround_s": {job["name"]: job["finished_at"] - job["submitted_at"] for job in done},
    }


def _actors_used(config: ClusterConfig, ids: Collection[str]) -> int:
    """How many actors these jobs were on: each has loaded one base model, once."""
    store = Store(config.database_url)
    stays = store.stays()
    store.close()
    return len({stay.actor for stay in stays if stay.job_id in ids})


def _submit(controller: Any, specs: list[JobSpec]) -> None:
    fields = [spec.model_dump(mode="json") for spec in specs]
    answer = ray.get(controller.submit.remote(fields, os.urandom(8).hex()), timeout=300)
    if answer["problems"]:
        raise RuntimeError(str(answer["problems"]))


def _wait(controller: Any, names: set[str]) -> list[dict[str, Any]]:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        jobs = [job for job in ray.get(controller.list_jobs.remote(), timeout=60) if job["name"] in names]
        if len(jobs) == len(names) and all(job["finished_at"] for job in jobs):
            failed = [job for job in jobs if job["state"] != "SUCCEEDED"]
            if failed:
                raise RuntimeError(f"{failed[0]['name']}: {failed[0]['reason']}")
            return jobs
        time.sleep(0.2)
    raise RuntimeError(f"not within {_PATIENCE_S} s; is the machine busy?")


def _forecast(
    config: ClusterConfig,
    policy: str,
    arrivals: list[Arrival],
    specs: list[JobSpec],
    descriptions: dict[str, BaseDescription],
    hosted: list[str | None],
) -> float:
    """The mean turnaround by the scheduler's own clock, with the profile that is in the store of this run now."""
    store = Store(config.database_url)
    profiles = Profiles(store)
    store.close()
    assert not isinstance(config.actors, str)
    slots = listed_places(config.actors, [{"NodeID": "here", "Alive": True, "Resources": {HEAD: 1.0}}])
    actors = []
    for slot, base in zip(slots, hosted, strict=True):
        state = ActorState.READY if base else ActorState.EMPTY
        place = ActorView(slot.id, slot.id, state, slot.shape, base, memory_limit=slot.memory_limit)
        actors += with_models([(place, slot, None)], profiles, descriptions)
    jobs = []
    for number, (spec, arrival) in enumerate(zip(specs, arrivals, strict=True)):
        view = scheduling_view(
            spec.name, spec, descriptions[spec.base_model], size=guess_size(spec.dataset), devices=["cpu"]
        )
        jobs.append(replace(view, arrival=number, submitted_at=arrival.at, queued_at=arrival.at))
    found = forecast(ClusterView(tuple(jobs), tuple(actors), descriptions, now=0.0), policy)
    return mean(one.finish - one.job.submitted_at for one in found.values())


if __name__ == "__main__":
    sys.exit(main())
