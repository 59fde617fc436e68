"""The scheduler against its targets, on a simulated clock: `python benchmarks/scheduling/schedule.py [--json FILE]`.

Prints one row per target: what is asked at least, what is aimed at, what was measured. The targets are asked of the
geometric means over the contended workloads, those of load above 1, of jobs that come one by one to 4 actors and of
recorded ones; the other rows are for information. Everything is drawn from seeds, so that the same command prints the
same figures on every machine, decision times excepted. With `--trace FILE.csv
--profile FILE.yaml --actors N` (as often as wanted) a recorded workload at
four loads is measured as well.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from many_bases import Row, base_rows, geometric, show
from scenarios import Scenario, devices, grids, recorded, scenarios
from uneven import uneven_rows

from orchestrator.scheduler.incremental import IncrementalPlan
from orchestrator.scheduler.policy import decide
from orchestrator.scheduler.view import ActorShape, ActorState, ActorView, ClusterView, JobView
from orchestrator.simulation.bounds import Task, relaxed_bound, slowdown_bound, tasks_of, unshared_bound
from orchestrator.simulation.devices import load_of
from orchestrator.simulation.optimum import optimum
from orchestrator.simulation.simulator import Outcome, Simulation
from orchestrator.simulation.workload import WorkloadShape, generate, small_instance

POLICIES = ("fifo", "fifo-4", "fifo-memory", "srpt", "cosrpt")
WIDE = 16  # actors of the seeded workloads on a larger cluster, with half as many jobs for each
MAKESPAN = 1.5  # the knob of the cluster file, where makespan is looked at
RATIOS = (
    ("mean turnaround / fifo-4", "0.60", "0.50", "fifo-4"),
    ("mean turnaround / fifo-memory", "0.70", "0.60", "fifo-memory"),
    ("mean turnaround / fifo", "0.30", "0.20", "fifo"),
    ("mean turnaround / relaxed lower bound", "1.60", "1.45", "bound"),
    ("mean turnaround / bound without shared steps", "1.0", "0.85", "unshared"),
    ("p95 / fifo-memory", "0.75", "0.65", "p95"),
    ("makespan / fifo-4", "1.05", "1.00", "makespan"),  # who wants less sets the knob
    (f"makespan / fifo-4 with makespan: {MAKESPAN}", "1.00", "0.95", "sooner, makespan"),
    (f"mean turnaround / fifo-4 with makespan: {MAKESPAN}", "0.60", "0.50", "sooner, mean"),
    ("p50 / srpt", "-", "-", "p50"),
    ("largest slowdown / its lower bound", "-", "-", "slowdown"),
)


def simulate(scenario: Scenario, policy: str, noise: float = 0.0, makespan: float = 0.0) -> Outcome:
    """One run."""
    jobs, profile, actors = scenario
    return Simulation(jobs, [profile] * actors, policy, noise=noise, makespan=makespan).run()


def contended(workloads: dict[str, Scenario], title: str, *, judged: bool = False) -> list[Row]:
    """The rows over some scenarios, each of which is printed as it is done.

    Args:
        workloads: The scenarios.
        title: What to call them.
        judged: Whether the targets are asked of them, where load is above 1; else the rows are for information.
    """
    ratios: dict[str, list[float]] = {}
    print(f"\n{title:24s} {'load':>5s} " + " ".join(f"{name:>11s}" for name in POLICIES) + "   bound  unshared")
    for name, scenario in workloads.items():
        jobs, profile, actors = scenario
        runs = {policy: simulate(scenario, policy) for policy in POLICIES}
        means = {policy: float(run.turnaround.mean()) for policy, run in runs.items()}
        tasks = tasks_of(jobs, profile)
        lower = relaxed_bound(tasks, profile.step_seconds, actors)
        unshared = unshared_bound(tasks, profile.step_seconds, actors)
        ours, load = runs["cosrpt"], load_of(jobs, [profile] * actors)
        sooner = simulate(scenario, "cosrpt", makespan=MAKESPAN)
        shown = " ".join(f"{means[policy]:11,.0f}" for policy in POLICIES)
        print(f"{name:24s} {load:5.2f} {shown} {lower:7,.0f} {unshared:9,.0f}", flush=True)
        least = slowdown_bound(tasks, profile.step_seconds, actors)
        for key, value in (
            ("fifo-4", means["cosrpt"] / means["fifo-4"]),
            ("fifo-memory", means["cosrpt"] / means["fifo-memory"]),
            ("fifo", means["cosrpt"] / means["fifo"]),
            ("bound", means["cosrpt"] / lower),
            ("unshared", means["cosrpt"] / unshared),
            ("p95", float(np.percentile(ours.turnaround, 95) / np.percentile(runs["fifo-memory"].turnaround, 95))),
            ("makespan", ours.makespan / runs["fifo-4"].makespan),
            ("sooner, makespan", sooner.makespan / runs["fifo-4"].makespan),
            ("sooner, mean", float(sooner.turnaround.mean()) / means["fifo-4"]),
            ("p50", float(np.median(ours.turnaround) / np.median(runs["srpt"].turnaround))),
            ("slowdown", slowest(ours) / least),
        ):
            ratios.setdefault(key, []).append(value)
            if load > 1.0:
                ratios.setdefault(f"{key}, contended", []).append(value)
    return [
        (f"{words}, {title}, {which}", *(targets if judged and which != "all" else ("-", "-")), geometric(ratios[name]))
        for words, *targets, key in RATIOS
        for which, name in (("load > 1", f"{key}, contended"), ("all", key))
    ]


def slowest(run: Outcome) -> float:
    """The largest slowdown."""
    return float((run.turnaround / run.alone).max())


def slowdown(count: int) -> float:
    """The largest slowdown on 16 actors at load 1.2."""
    profile = devices()[1]
    jobs = generate(count, profile, 16, WorkloadShape(load=1.2, seconds=600, spread=1.4, burstiness=1.5), 7)
    return slowest(simulate((jobs, profile, 16), "cosrpt"))


def urgent(count: int) -> float:
    """The 95th percentile of the slowdown of a tenth of the jobs with weight 8, at load 1."""
    profile = devices()[1]
    jobs = generate(count, profile, 8, WorkloadShape(load=1.0, seconds=600, urgent=0.1), 11)
    run = simulate((jobs, profile, 8), "cosrpt")
    chosen = np.array([job.priority > 0 for job in jobs])
    return float(np.percentile((run.turnaround / run.alone)[chosen], 95))


def four_bases(count: int) -> float:
    """Four base models in bursts, against the same jobs on one."""
    ratios = []
    for seed, profile in enumerate(devices()[:2]):
        shape = WorkloadShape(load=1.0, seconds=900, bases=4, runs=15)
        jobs = generate(count, profile, 8, shape, seed + 1)
        one = [job.model_copy(update={"base_model": "one"}) for job in jobs]
        means = [simulate((some, profile, 8), "cosrpt").turnaround.mean() for some in (jobs, one)]
        ratios.append(float(means[0] / means[1]))
    return geometric(ratios)


def misestimated(workloads: dict[str, Scenario]) -> float:
    """Sizes off by exp(N(0, 0.5)), against fifo-4, in the scenarios of the A100."""
    some = [scenario for name, scenario in workloads.items() if name.startswith("a100-7b")]
    return geometric(
        [
            float(simulate(one, "cosrpt", 0.5).turnaround.mean() / simulate(one, "fifo-4").turnaround.mean())
            for one in some
        ]
    )


def exact(count: int) -> tuple[float, float]:
    """Mean and worst ratio to the exact optimum of small instances."""
    ratios = []
    for seed in range(count):
        jobs, profile, actors = small_instance(seed)
        mean = float(simulate((jobs, profile, actors), "cosrpt").turnaround.mean())
        ratios.append(mean / optimum(tasks_of(jobs, profile), profile.step_seconds, actors, upper_bound=mean))
    return float(np.mean(ratios)), max(ratios)


def gap_below(ratio: float) -> float:
    """Exact optimum over the relaxed bound, for six equal jobs at once on one actor with a = ratio * v."""
    tasks = [Task(release=0.0, steps=100, added=1.0)] * 6
    return optimum(tasks, ratio) / relaxed_bound(tasks, ratio, 1)


def out_of_memory(target: float, steps: int = 10**6) -> int:
    """Shared steps of actors, filled by prediction to a share of the memory, that go over it.

    The prediction of each actor's coefficients is off by up to 10 %, and corrected by `MemoryFit`'s first three probes
    (each read with 0.5 % noise); the batcher enforces the token cap, lengths are log-normal.
    """
    from orchestrator.scheduler.estimate import MemoryFit
    from orchestrator.scheduler.view import MemoryModel

    random = np.random.default_rng(3)
    actors, limit, over = 200, 80e9, 0
    for _ in range(actors):
        true = MemoryModel(16.5e9, 2.2e6, 8192)
        off = 1 + random.uniform(-0.1, 0.1, 2)
        fit = MemoryFit(MemoryModel(true.fixed_bytes * off[0], true.bytes_per_token * off[1], 8192))
        for tokens in (1024, 4096, 8192):
            peak = true.fixed_bytes + true.bytes_per_token * tokens
            fit.observe(tokens, 0.0, peak * (1 + random.normal(0, 0.005)))
        guess, adapters = fit.model, 0.0
        while True:
            size = 2.56e9 * float(random.choice([0.05, 0.25, 0.5, 1.0]))
            planned = guess.fixed_bytes + guess.bytes_per_token * 8192 + adapters + size + fit.margin
            if planned > target * limit:
                break
            adapters += size
        asked = np.exp(random.normal(math.log(180), 0.8, (steps // actors, 8))).sum(axis=1) * 8
        used = true.fixed_bytes + true.bytes_per_token * np.minimum(asked, 8192) + adapters
        over += int((used * (1 + random.normal(0, 0.005, len(used))) > limit).sum())
    return over


def large_cluster(queued: int, actors: int) -> tuple[ClusterView, list[JobView]]:
    """A large cluster after the first plan was carried out, and as many jobs again as wait there."""
    random = np.random.default_rng(5)
    profile = devices()[1]
    shape = ActorShape("cuda", profile.microbatch_tokens, 2)
    speeds, memories = {"b": profile.speed}, {"b": profile.memory}
    places = tuple(
        ActorView(
            f"a{n:04d}", f"a{n:04d}", ActorState.READY, shape, "b", None, profile.memory_bytes, None, speeds, memories
        )
        for n in range(actors)
    )
    count = 2 * queued + 2 * actors
    tokens = random.choice([1, 2, 4, 8, 16], count) * np.exp(random.normal(5.2, 0.8, count))
    jobs = [
        JobView(
            id=f"j{n:05d}",
            base_model="b",
            priority=0,
            arrival=n,
            adapter_bytes=640_000_000,
            worst_tokens=int(tokens[n]) + 1,
            tokens_per_step=float(tokens[n]),
            steps_left=int(random.integers(10, 5000)),
        )
        for n in range(count)
    ]
    view = ClusterView(tuple(jobs[: queued + 2 * actors]), places, {})
    plan = decide(view)
    running = {**plan.placements, **plan.after}
    attached = [replace(job, actor=running.get(job.id), movable=job.id in running) for job in view.jobs]
    return replace(view, jobs=tuple(attached)), jobs[len(attached) :]


def decision_ms(queued: int = 10_000, actors: int = 1000) -> float:
    """Milliseconds of processor time of one full plan of a large cluster, words included; the median of five."""
    view, _ = large_cluster(queued, actors)
    times = []
    for _ in range(5):
        started = time.process_time()
        decide(view)
        times.append(time.process_time() - started)
    return 1000 * float(np.median(times))


def event_ms(queued: int = 10_000, actors: int = 1000, events: int = 400) -> dict[str, list[float]]:
    """Milliseconds of processor time that the answer to one end, and to one arrival, takes between two full plans."""
    view, coming = large_cluster(queued, actors)
    random = np.random.default_rng(9)
    plan, jobs = IncrementalPlan(view), {job.id: job for job in view.jobs}
    times: dict[str, list[float]] = {"end": [], "arrival": []}
    for number in range(events):
        kind = "end" if number % 2 else "arrival"
        running = [job.id for job in jobs.values() if job.actor is not None] if kind == "end" else []
        gone = [running[int(random.integers(len(running)))]] if kind == "end" else []
        arrived = [coming.pop()] if kind == "arrival" else []
        started = time.process_time()
        answer = plan.answer(arrived, gone, 0.0)
        times[kind].append(1000 * (time.process_time() - started))
        if answer is None:  # somebody else is about to leave there: it takes a full plan, and nothing has changed
            times[kind].pop()
            continue
        jobs |= {job.id: job for job in arrived}
        jobs |= {job_id: replace(jobs[job_id], actor=place) for job_id, place in answer.placements.items()}
        for job_id in gone:
            del jobs[job_id]
    return times


def events_per_second(queued: int = 10_000, actors: int = 1000) -> float:
    """Ends and arrivals of a large cluster that stays as full as it is: for each job that ends one comes."""
    view, _ = large_cluster(queued, actors)
    profile, together = devices()[1], {place.id: devices()[1].step_seconds for place in view.actors}
    running = [job for job in view.jobs if job.actor is not None]
    for job in running:
        together[str(job.actor)] += profile.speed.added(job.tokens, profile.microbatch_tokens)
    steps = float(np.mean([job.steps_left for job in view.jobs]))
    return 2 * sum(1 / (steps * together[str(job.actor)]) for job in running)


def planner_rows(cluster: tuple[int, int]) -> list[Row]:
    """What planning costs on a large cluster, and what the answers between full plans save."""
    events, full, rate = event_ms(*cluster), decision_ms(*cluster), events_per_second(*cluster)
    answer = float(np.mean(events["end"] + events["arrival"]))
    return [
        ("full plan, {:,} queued, {:,} actors, ms".format(*cluster), "250", "70", full),
        *(
            (f"one {kind} between full plans, {words}, ms", "1", "0.1", float(np.percentile(events[kind], share)))
            for kind in ("end", "arrival")
            for words, share in (("median", 50), ("99th percentile", 99))
        ),
        ("ends and arrivals there, for each second", "-", "-", rate),
        ("a full plan at each of them, in parts of one core", "-", "-", rate * full / 1000),
        ("an answer to each, and a full plan every 20 times its time, likewise", "-", "-", 0.05 + rate * answer / 1000),
    ]


def single_rows(workloads: dict[str, Scenario], quick: bool, count: int) -> list[Row]:
    """The rows that are no ratio over all scenarios."""
    steps, cluster = (10**4, (200, 20)) if quick else (10**6, (10_000, 1000))
    mean, worst = exact(4 if quick else 60)
    return [
        ("largest slowdown, 16 actors, load 1.2", "20", "12", slowdown(3 * count)),
        ("p95 slowdown of a weight-8 tenth, load 1.0", "1.5", "1.2", urgent(count)),
        ("exact small instances, mean", "1.05", "1.02", mean),
        ("exact small instances, worst", "1.15", "1.08", worst),
        *(
            (f"exact optimum / relaxed bound, six equal jobs at once, a = {ratio:g} v", "-", "-", gap_below(ratio))
            for ratio in (0.5, 1.0, 2.0)
        ),
        ("four base models with bursts / one base", "1.15", "1.08", four_bases(count)),
        ("sizes off by exp(N(0, 0.5)) / fifo-4", "0.65", "0.55", misestimated(workloads)),
        (f"steps of {steps:,} out of memory, filled to 85 %", "0", "-", out_of_memory(0.85, steps)),
        (f"steps of {steps:,} out of memory, filled to 90 %", "-", "0", out_of_memory(0.90, steps)),
        *planner_rows(cluster),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=400, help="jobs of each scenario")
    parser.add_argument("--quick", action="store_true", help="a dozen jobs each: does the benchmark itself work?")
    parser.add_argument("--trace", type=Path, action="append", default=[], help="a recorded workload, added to them")
    parser.add_argument("--profile", type=Path, action="append", default=[], help="its device")
    parser.add_argument("--actors", type=int, action="append", default=[], help="how many of it")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    options = parser.parse_args()
    count = 12 if options.quick else options.jobs
    given: dict[str, Scenario] = {}
    for trace, profile, actors in zip(options.trace, options.profile, options.actors, strict=True):
        given |= recorded(trace, profile, actors)
    workloads = scenarios(count)
    rows = contended(workloads, "seeded", judged=True) + contended(scenarios(2 * count, WIDE), f"on {WIDE} actors")
    rows += contended(grids(count), "grids")
    rows += contended(given, "recorded", judged=True) if given else []
    rows += base_rows(*((12, 4) if options.quick else (120, 60)))
    rows += uneven_rows(12 if options.quick else 120)
    rows += single_rows(workloads, options.quick, count)
    show(rows)
    if options.json:
        table = [dict(zip(("what", "least", "aim", "measured"), row, strict=True)) for row in rows]
        options.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
