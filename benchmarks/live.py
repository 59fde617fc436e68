"""Live against simulated: short jobs of two base models on two CPU actors of a real Ray cluster, under two policies.

    python benchmarks/live.py [--gantt FILE.svg] [--json FILE]

Prints both measured mean turnarounds, their ratio, and what the scheduler's own forecast says, given the speed that
was fitted in these runs. Needs two idle cores; the load of the machine stands beside the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import workload

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a cluster of this process alone, on the loopback interface
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # a busy machine must not starve the actors
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import ray

from gpu_actor.config import DatasetConfig, LoraConfig, TrainingConfig
from gpu_actor.footprint import BaseDescription
from gpu_actor.inspect_base import describe_base
from orchestrator.cluster_config import ClusterConfig
from orchestrator.controller import start_or_attach_controller
from orchestrator.data_size import guess_size
from orchestrator.job import JobSpec
from orchestrator.look import scheduling_view, with_profiles
from orchestrator.profiles import Profiles
from orchestrator.scheduler.forecast import forecast
from orchestrator.scheduler.gantt import Segment, render
from orchestrator.scheduler.view import ActorState, ActorView, ClusterView
from orchestrator.slots import HEAD, listed_slots
from orchestrator.store import Store

ROOT = Path(__file__).resolve().parent.parent
POLICIES = ("fifo-4", "cosrpt")
# Long ones come first, as they do to their users' regret; (base, steps, arrival in seconds).
JOBS = [
    (0, 500, 0), (1, 400, 0), (0, 420, 1), (1, 450, 1), (0, 380, 2), (0, 60, 4), (1, 50, 5),
    (0, 80, 6), (1, 120, 8), (0, 40, 9), (1, 30, 10), (0, 200, 12), (1, 60, 14), (0, 30, 16),
]  # fmt: skip
_PATIENCE_S = 900
_ACTORS = [{"cpu_threads": 1}, {"cpu_threads": 1}]


def main() -> int:
    """Run both policies and print."""
    parser = argparse.ArgumentParser(description="Mean turnaround on a real cluster against the forecast.")
    parser.add_argument("--gantt", type=Path, metavar="FILE.svg", help="draw the run under cosrpt")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    arguments = parser.parse_args()
    workload.quiet()
    result: dict[str, Any] = {"jobs": len(JOBS), "load_before": os.getloadavg()[0], "policies": {}}
    with tempfile.TemporaryDirectory(prefix="lr", dir="/tmp") as name:
        folder = Path(name)
        bases = [_save_base(folder / f"base-{seed}", seed) for seed in range(2)]
        descriptions = {base: describe_base(base) for base in bases}
        for policy in POLICIES:
            result["policies"][policy] = _run(folder, policy, bases, descriptions, arguments.gantt)
    measured, forecasts = (
        {p: row[key] for p, row in result["policies"].items()} for key in ("measured_s", "forecast_s")
    )
    first, second = POLICIES
    result["ratio_measured"] = measured[second] / measured[first]
    result["ratio_forecast"] = forecasts[second] / forecasts[first]
    result["load_after"] = os.getloadavg()[0]
    for policy, row in result["policies"].items():
        print(
            f"{policy}: mean turnaround {row['measured_s']:.1f} s measured, {row['forecast_s']:.1f} s forecast "
            f"({row['forecast_s'] / row['measured_s'] - 1:+.1%}), {row['taken_off']} times a job was taken off"
        )
    print(
        f"{second} / {first}: {result['ratio_measured']:.2f} measured, {result['ratio_forecast']:.2f} forecast; load "
        f"of the machine {result['load_before']:.1f} before, {result['load_after']:.1f} after, {os.cpu_count()} cores"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _save_base(folder: Path, seed: int) -> str:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512, hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def _spec(folder: Path, name: str, base: str, steps: int) -> JobSpec:
    import numpy as np

    random = np.random.default_rng(len(name))
    rows = [random.integers(3, 500, int(n)).tolist() for n in random.integers(20, 60, 64)]
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps({"input_ids": row, "labels": row}) + "\n" for row in rows))
    return JobSpec(
        name=name,
        base_model=base,
        dataset=DatasetConfig(path=str(data), format="tokens"),
        lora=LoraConfig(r=8),
        training=TrainingConfig(max_steps=steps, per_device_train_batch_size=4, cutoff_len=64, save_steps=10_000),
        output_dir=str(folder / "out" / name),
    )


def _run(
    folder: Path, policy: str, bases: list[str], descriptions: dict[str, BaseDescription], chart: Path | None
) -> dict[str, Any]:
    """One policy on a cluster of its own: warm up, then the jobs at their times."""
    own = folder / policy
    config = ClusterConfig(
        storage=str(own / "storage"), actors=_ACTORS, scheduler={"policy": policy, "tick_seconds": 0.1}
    )
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=80 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}},
    )
    try:
        controller = start_or_attach_controller(config)
        warm = [_spec(own / "warm", f"warm-{n}", base, 60) for n, base in enumerate(bases)]
        _submit(controller, warm)
        _wait(controller, {spec.name for spec in warm})
        hosted = [actor["base_model"] or None for actor in ray.get(controller.cluster.remote())["actors"]]
        specs = [_spec(own, f"j{n:02d}", bases[base], steps) for n, (base, steps, _) in enumerate(JOBS)]
        started = time.time()
        for spec, (_, _, arrival) in zip(specs, JOBS, strict=True):
            time.sleep(max(0.0, started + arrival - time.time()))
            _submit(controller, [spec])
        jobs = _wait(controller, {spec.name for spec in specs})
        events = {job["name"]: ray.get(controller.events.remote(job["name"])) for job in jobs}
        ray.get(controller.shutdown.remote(), timeout=120)
    finally:
        ray.shutdown()
    segments = [segment for name, rows in events.items() for segment in _segments(name, rows, started)]
    if chart is not None and policy == "cosrpt":
        lanes = sorted({segment.lane for segment in segments})
        chart.write_text(render(lanes, segments, title=f"{len(jobs)} jobs under {policy}"), encoding="utf-8")
    return {
        "measured_s": mean(job["finished_at"] - job["submitted_at"] for job in jobs),
        "forecast_s": _forecast(config, policy, specs, descriptions, hosted),
        "taken_off": sum("is taken off" in row["message"] for rows in events.values() for row in rows),
        "turnaround_s": {job["name"]: job["finished_at"] - job["submitted_at"] for job in jobs},
    }


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


def _segments(name: str, events: list[dict[str, Any]], started: float) -> list[Segment]:
    """Who was where when, from a job's events."""
    found, since, lane = [], 0.0, ""
    for event in events:
        if event["message"].startswith("assigned to "):
            since, lane = event["time"], event["message"].split()[2].split("@")[1].split("#")[0]
        elif lane and event["message"].startswith(("taken off", "succeeded")):
            found.append(Segment(name, lane, since - started, event["time"] - started))
            lane = ""
    return found


def _forecast(
    config: ClusterConfig,
    policy: str,
    specs: list[JobSpec],
    descriptions: dict[str, BaseDescription],
    hosted: list[str | None],
) -> float:
    """The mean turnaround by the scheduler's own clock, with the profile that this run has left in its store."""
    store = Store(config.database_url)
    profiles = Profiles(store)
    store.close()
    assert not isinstance(config.actors, str)
    slots = listed_slots(config.actors, [{"NodeID": "here", "Alive": True, "Resources": {HEAD: 1.0}}])
    actors = []
    for slot, base in zip(slots, hosted, strict=True):
        state = ActorState.READY if base else ActorState.EMPTY
        place = ActorView(slot.id, slot.id, state, slot.shape, base, memory_limit=slot.memory_limit)
        actors.append(with_profiles(place, slot, profiles, descriptions))
    jobs = []
    for number, (spec, (_, _, arrival)) in enumerate(zip(specs, JOBS, strict=True)):
        view = scheduling_view(spec.name, spec, descriptions[spec.base_model], size=guess_size(spec.dataset))
        jobs.append(replace(view, arrival=number, submitted_at=float(arrival), queued_at=float(arrival)))
    found = forecast(ClusterView(tuple(jobs), tuple(actors), descriptions, now=0.0), policy)
    return mean(one.finish - one.job.submitted_at for one in found.values())


if __name__ == "__main__":
    sys.exit(main())
