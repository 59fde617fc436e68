"""`loray simulate`: what the policies would do with a recorded workload, and how far that is from the best possible."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from orchestrator import formatting
from orchestrator.cli import progress
from orchestrator.cli.chart import write_chart
from orchestrator.cli.options import AsJson, Chart
from orchestrator.jobs.output_folder import read_metrics
from orchestrator.scheduler.policy import DEFAULT, POLICIES
from orchestrator.simulation import gantt
from orchestrator.simulation.bounds import lower_bound, unshared_lower_bound
from orchestrator.simulation.devices import load_of
from orchestrator.simulation.early_stop import StoppingSimulation, Stops
from orchestrator.simulation.loss_curves import Rows, draw_curves
from orchestrator.simulation.simulator import Outcome, Simulation
from orchestrator.simulation.trace import Profile, TraceError, TraceJob, read_profile, read_rules, read_trace
from orchestrator.terminal import display
from orchestrator.validation.problems import Problem

REFERENCE = "fifo-4"
_MOST_ACTORS = 100_000


def simulate(
    trace: Annotated[Path, typer.Option("--trace", metavar="FILE.csv", help="The jobs.", show_default=False)],
    actors: Annotated[
        str,
        typer.Option(
            "--actors",
            metavar="N",
            help="How many of these devices, or several kinds of them: 4:a.yaml,8:b.yaml.",
            show_default=False,
        ),
    ],
    profile: Annotated[
        Path | None, typer.Option("--profile", metavar="PROFILE.yaml", help="The device.", show_default=False)
    ] = None,
    policy: Annotated[
        str, typer.Option("--policy", metavar="A,B,C", help=f"Policies to compare: {', '.join(POLICIES)}.")
    ] = ",".join(POLICIES),
    noise: Annotated[
        float, typer.Option("--noise", min=0.0, max=5.0, help="The scheduler errs about sizes by exp(N(0, NOISE)).")
    ] = 0.0,
    makespan: Annotated[
        float, typer.Option("--makespan", min=0.0, max=4.0, help="As `scheduler.makespan` of the cluster file.")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the noise, and of drawn losses.")] = 0,
    early_stop: Annotated[
        Path | None,
        typer.Option(
            "--early-stop",
            metavar="RULES.yaml",
            help="Also: what these rules (a job's `early_stop`) would save.",
            show_default=False,
        ),
    ] = None,
    losses: Annotated[
        Path | None,
        typer.Option(
            "--losses",
            metavar="FOLDER",
            help="Recorded losses for --early-stop, JOB/metrics.jsonl each; else they are drawn.",
            show_default=False,
        ),
    ] = None,
    chart: Chart = None,
    as_json: AsJson = False,
) -> None:
    """Run a workload through the scheduler on a simulated clock, and compare policies; nothing is trained.

    --gantt draws the first of the policies.
    """
    names = _policies(policy)
    jobs, devices = read_trace(trace), _devices(actors, profile)
    cluster = _in_words(devices)
    outcomes: dict[str, Outcome] = {}
    for name in dict.fromkeys([*names, REFERENCE]):
        record = chart is not None and name == names[0]
        options: dict[str, Any] = {"noise": noise, "seed": seed, "record": record, "makespan": makespan}
        outcomes[name] = Simulation(jobs, devices, name, **options).run()
        if record and chart is not None:
            _draw(chart, outcomes[name], name, f"{trace.name} on {cluster}")
    result = summary(jobs, devices, outcomes, names)
    counted = Simulation(jobs, devices, REFERENCE, noise=noise, seed=seed, by_count=True).run()
    result["oom_jobs_by_count"] = counted.oom
    if early_stop is not None:
        rules, curves = read_rules(early_stop), _curves(jobs, losses, seed)
        options = {"noise": noise, "seed": seed, "makespan": makespan}
        stopping = {
            name: StoppingSimulation(jobs, devices, name, rules, curves, **options).run_and_count() for name in names
        }
        result["early_stop"] = {name: _stop_figures(stopping[name], outcomes[name]) for name in names}
    if as_json:
        progress.print_json(result)
        return
    console = display.make_console()
    come = "all at once" if result["load"] is None else f"load {result['load']:.2f}"
    console.print(
        f"{formatting.plural(len(jobs), 'job')}, {cluster}, {come}; no scheduler has a mean below "
        f"{result['lower_bound_s']:,.0f} s, none without shared steps one below {result['no_sharing_bound_s']:,.0f} s",
        soft_wrap=True,
    )
    console.print(_table(result["policies"], console.width))
    if early_stop is not None:
        console.print(_stops_table(result["early_stop"]))
    console.print(
        f"Four to an actor without a look at memory, as m-LoRA as released admits them, would run {counted.oom} of "
        f"{formatting.plural(len(jobs), 'job')} out of memory",
        soft_wrap=True,
    )
    rejected = max(one["rejected_jobs"] for one in result["policies"].values())
    if rejected:
        kinds = " or ".join(dict.fromkeys(device.name for device in devices))
        which = f"{formatting.plural(rejected, 'job')} of {len(jobs)} would not fit on {kinds} even alone"
        console.print(f"{which}: rejected, and in no figure above", soft_wrap=True)


def summary(
    jobs: Sequence[TraceJob], devices: Sequence[Profile], outcomes: dict[str, Outcome], names: Sequence[str]
) -> dict[str, Any]:
    """Figures of every policy, and the bounds.

    Args:
        jobs: The trace.
        devices: One for each actor.
        outcomes: Of at least `names` and `REFERENCE`.
        names: Policies to tell of.
    """
    reference = outcomes[REFERENCE]
    ended = np.isfinite(reference.turnaround)  # the same under every policy: only what never fits is rejected
    able = [job for job, ok in zip(jobs, ended, strict=True) if ok]
    lower = lower_bound(able, devices) if able else 0.0
    unshared = unshared_lower_bound(able, devices) if able else 0.0
    mean = figures(reference)["mean_s"]
    policies = {}
    for name in names:
        shown = figures(outcomes[name])
        policies[name] = {
            **shown,
            "ratio_to_fifo_4": _ratio(shown["mean_s"], mean),
            "ratio_to_lower_bound": _ratio(shown["mean_s"], lower),
            "ratio_to_no_sharing_bound": _ratio(shown["mean_s"], unshared),
        }
    load = load_of(jobs, devices)
    return {
        "jobs": len(jobs),
        "actors": len(devices),
        "load": load if math.isfinite(load) else None,
        "lower_bound_s": lower,
        "no_sharing_bound_s": unshared,
        "policies": policies,
    }


def _curves(jobs: Sequence[TraceJob], folder: Path | None, seed: int) -> Mapping[str, Rows]:
    """The losses of each job: recorded ones of those that have any, or drawn ones."""
    if folder is None:
        return draw_curves(jobs, seed)
    recorded = {job.job: read_metrics(str(folder / job.job)) for job in jobs}
    curves = {name: rows for name, rows in recorded.items() if rows}
    if not curves:
        message = f"{folder} holds no losses of a job of the trace; give a folder with JOB/metrics.jsonl"
        raise TraceError([Problem("--losses", "", message)])
    return curves


def _stop_figures(stops: Stops, outcome: Outcome) -> dict[str, Any]:
    """What early stop does under one policy; `outcome` is the run without it."""
    mean, whole = (figures(one)["mean_s"] for one in (stops.outcome, outcome))
    return {
        "mean_s": mean,
        "ratio_to_all_steps": _ratio(mean, whole),
        "stopped_jobs": len(stops.reasons),
        "steps_saved": stops.steps_saved,
        "grids": stops.grids,
        "grids_without_their_best": stops.best_lost,
    }


def _stops_table(policies: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("early stop", no_wrap=True, min_width=max(map(len, POLICIES)))
    for head in ("mean s", "/ all steps", "stopped", "steps saved", "best stopped"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, one in policies.items():
        lost = f"{one['grids_without_their_best']} of {formatting.plural(one['grids'], 'grid')}"
        shown = (f"{one['mean_s']:,.0f}", _shown(one["ratio_to_all_steps"], ".2f"), str(one["stopped_jobs"]))
        table.add_row(name, *shown, f"{one['steps_saved']:.0%}", lost)
    return table


def figures(outcome: Outcome) -> dict[str, float]:
    """The figures of one policy; seconds are those of the jobs that ended."""
    ended = np.isfinite(outcome.turnaround)
    times, alone = outcome.turnaround[ended], outcome.alone[ended]
    p50, p95, p99 = np.percentile(times, (50, 95, 99)) if len(times) else (0.0, 0.0, 0.0)
    return {
        "mean_s": float(times.mean()) if len(times) else 0.0,
        "p50_s": float(p50),
        "p95_s": float(p95),
        "p99_s": float(p99),
        "makespan_s": outcome.makespan,
        "max_slowdown": float((times / alone).max(initial=0.0)),
        "swaps_per_job": outcome.swaps / max(len(times), 1),
        "decision_ms": 1000 * outcome.decision_seconds / max(outcome.decisions, 1),
        "oom_jobs": outcome.oom,
        "rejected_jobs": outcome.rejected,
    }


def _devices(actors: str, profile: Path | None) -> list[Profile]:
    """The device of each actor, by the options of these names.

    Raises:
        TraceError: They do not tell it, or a profile cannot be used.
    """
    parts = [part.strip().partition(":") for part in actors.split(",")]
    numbers = all(count.isdecimal() and 0 < int(count) <= _MOST_ACTORS for count, _, _ in parts)
    if not numbers or any(bool(file) == (profile is not None) for _, _, file in parts):
        how = "a number with --profile PROFILE.yaml, or without it NUMBER:PROFILE.yaml,NUMBER:PROFILE.yaml"
        raise TraceError([Problem("--actors", "", f"{actors} is not how many of which; give {how}")])
    devices: list[Profile] = []
    for count, _, file in parts:
        devices += [read_profile(profile or Path(file))] * int(count)
    kinds = Counter(device.name for device in set(devices))
    if twice := next((name for name, count in kinds.items() if count > 1), None):
        raise TraceError([Problem("--actors", "", f"two profiles that differ are both called {twice}; rename one")])
    if len(devices) > _MOST_ACTORS:
        raise TraceError([Problem("--actors", "", f"{len(devices)} are too many; {_MOST_ACTORS} are allowed")])
    return devices


def _in_words(devices: Sequence[Profile]) -> str:
    counted = Counter(device.name for device in devices)
    return " and ".join(f"{formatting.plural(count, 'actor')} of {name}" for name, count in counted.items())


def _ratio(value: float, reference: float) -> float | None:
    return value / reference if reference else None


def _policies(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in names if name not in POLICIES]
    if wrong or not names:
        shown = ", ".join(wrong) or "nothing"
        raise TraceError([Problem("--policy", "", f"{shown} is no policy; allowed: {', '.join(POLICIES)}")])
    return list(dict.fromkeys(names))


def _draw(path: Path, outcome: Outcome, policy: str, title: str) -> None:
    write_chart(path, gantt.render(tuple(outcome.memory), outcome.segments, outcome.memory, f"{policy}: {title}"))


_COLUMNS = (
    ("mean s", "mean_s", ",.0f"),
    ("p50 s", "p50_s", ",.0f"),
    ("p95 s", "p95_s", ",.0f"),
    ("p99 s", "p99_s", ",.0f"),
    ("makespan s", "makespan_s", ",.0f"),
    ("slowdown", "max_slowdown", ".1f"),
    ("swaps", "swaps_per_job", ".2f"),
    ("ms", "decision_ms", ".2f"),
    ("oom", "oom_jobs", "d"),
    ("fifo-4", "ratio_to_fifo_4", ".2f"),
    ("bound", "ratio_to_lower_bound", ".2f"),
)
_LARGE = 1e9  # from here on a figure is shown by its power of ten
_WIDE = 110  # columns of a terminal from which on all figures are shown
_FEWER = ("mean s", "p95 s", "makespan s", "slowdown", "oom", "fifo-4", "bound")


def _table(policies: dict[str, dict[str, float]], width: int) -> Table:
    """One row for each policy; a narrow terminal gets fewer figures, not cut ones."""
    columns = [column for column in _COLUMNS if width >= _WIDE or column[0] in _FEWER]
    table = Table(box=None, pad_edge=False)
    table.add_column("policy", no_wrap=True, min_width=max(map(len, POLICIES)))
    for head, _, _ in columns:
        table.add_column(head, justify="right", no_wrap=True)
    for name, one in policies.items():
        shown = [_shown(one[key], form) for _, key, form in columns]
        table.add_row(name, *shown, style="bold" if name == DEFAULT else None)
    return table


def _shown(value: float | None, form: str) -> str:
    if value is None:
        return "-"
    return format(value, form) if value < _LARGE else f"{value:.1e}"
