"""The benchmarks that take minutes, one after another: one table, one JSON file, and what moved since an earlier one.

    python benchmarks/suite.py [--quick] [--json FILE] [--only NAME ...]
    python benchmarks/suite.py --compare OLD.json [NEW.json]      without NEW.json: measures anew

All figures are ratios to a peer in the same run, or counts, so that they can be compared between machines and hours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

_HERE = Path(__file__).resolve().parent
_MOVED = 0.05  # relative change that is worth a line
Figures = dict[str, float]


def _cotrain(result: Any) -> Figures:
    def row(one: Any) -> str:
        return f"speed over PEFT, {one['jobs']} jobs{', dropout' if one['dropout'] else ''}"

    memory = {f"memory over {count} PEFT processes": ratio for count, ratio in result["memory_ratios"].items()}
    return {row(one): one["ratio"] for one in result["speed"]} | memory


def _roofline(result: Any) -> Figures:
    shares = {f"share of {kind}": share for kind, share in result["shares"].items()}
    return {**shares, "processor seconds of PEFT over Loray's": result["speed_over_peft"]}


def _actor(result: Any) -> Figures:
    beside = {f"share of the cores, {kind}": cores / result["cores"] for kind, cores in result["beside"].items()}
    speed = {"wall-clock speed over bare engine": result["wall_ratio"]}
    return {**speed, "work per processor second over bare engine": result["processor_ratio"], **beside}


def _crossover(result: Any) -> Figures:
    return {
        f"{one['base_model']}, {key.replace('_', ' ')}": float(one[key])
        for one in result
        for key in ("crossover_tokens", "budget")
        if one[key] is not None
    }


def _scale(result: Any) -> Figures:
    return {
        f"{one['base_model']}, share of a step, one more of {row['axis']}": row["of_a_step"]
        for one in result
        for row in one["rows"]
    }


def _peers(result: Any) -> Figures:
    named = {
        f"{row['peer']}, {row['lengths']} lengths, {row['jobs']} jobs": row
        for row in result["rows"]
        if not row["failure"]
    }
    return {
        f"{figure} of Loray over {name}": row[key]
        for name, row in named.items()
        for figure, key in (("speed", "speed"), ("memory", "memory"))
    }


def _ask(result: Any) -> Figures:
    return {f"speed over PEFT's generate, {row['what']}": median(row["ratios"]) for row in result["rows"]}


def _kernels(result: Any) -> Figures:
    return {f"kernels of a step, {one['case']}, {one['operator']}": float(one["step"]) for one in result}


def _memory(result: Any) -> Figures:
    return {
        f"{one['model']}, {when} over measured": one[when] / one["measured"]
        for one in result["rows"]
        for when in ("first", "fitted")
    }


PROGRAMS: Mapping[str, Callable[[Any], Figures]] = {
    "cotrain": _cotrain,
    "roofline": _roofline,
    "actor": _actor,
    "peers": _peers,
    "crossover": _crossover,
    "scale": _scale,
    "memory": _memory,
    "ask": _ask,
    "count_kernels": _kernels,
}
_ALWAYS_QUICK = ("count_kernels",)
_OPTIONS = {"peers": ("--jobs", "4", "--no-memory")}  # all of it takes half an hour
_PATIENCE_S = 3600  # for one program


def main() -> int:
    """Run, print, write and compare."""
    parser = argparse.ArgumentParser(description="Run the benchmarks that take minutes.")
    parser.add_argument("--quick", action="store_true", help="tiny models: do the benchmarks work?")
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="some of them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--compare", type=Path, nargs="+", metavar="FILE", help="an old file, and a new one if any")
    arguments = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    old, *others = [json.loads(path.read_text("utf-8")) for path in arguments.compare or ()] or [None]
    new = others[0] if others else run(arguments.only, quick=arguments.quick)
    if arguments.json:
        arguments.json.write_text(json.dumps(new, indent=2) + "\n", encoding="utf-8")
    console.print(_table(new) if old is None else _moved(old, new))
    return 1 if new["failed"] else 0


def run(names: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """Run programs, each in a process of its own; one that fails does not keep the others from running."""
    found: dict[str, Any] = {"quick": quick, "cores": os.cpu_count(), "figures": {}, "load": {}, "failed": []}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            print(f"{name} ...", flush=True)
            found["load"][name] = os.getloadavg()[0]
            file = Path(folder, f"{name}.json")
            command = [
                sys.executable,
                str(_HERE / f"{name}.py"),
                "--json",
                str(file),
                *_OPTIONS.get(name, ()),
                *(["--quick"] * (quick and name not in _ALWAYS_QUICK)),
            ]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S)
            except subprocess.TimeoutExpired:
                print(f"{name} was ended after {_PATIENCE_S} s", flush=True)
                found["failed"].append(name)
                continue
            if done.returncode:
                print(f"{name} ended with {done.returncode}:\n{done.stdout}{done.stderr}", flush=True)
                found["failed"].append(name)
            if file.exists():
                found["figures"][name] = PROGRAMS[name](json.loads(file.read_text("utf-8")))
    return found


def _table(new: Mapping[str, Any]) -> Table:
    table = Table(title=f"{new['cores']} cores{', tiny models' if new['quick'] else ''}")
    for heading in ("benchmark", "figure", "value", "load before"):
        table.add_column(heading, justify="right" if heading in ("value", "load before") else "left")
    for name, figures in new["figures"].items():
        for place, (figure, value) in enumerate(figures.items()):
            table.add_row(name, figure, f"{value:.4g}", f"{new['load'][name]:.1f}" if place == 0 else "")
    return table


def _moved(old: Mapping[str, Any], new: Mapping[str, Any]) -> Table:
    """What has changed by more than a twentieth, what is new, and what is gone."""
    table = Table(title=f"What moved by more than {_MOVED:.0%}")
    for heading in ("benchmark", "figure", "old", "new", "change"):
        table.add_column(heading, justify="left" if heading in ("benchmark", "figure") else "right")
    for name in dict.fromkeys([*old["figures"], *new["figures"]]):
        before, after = old["figures"].get(name, {}), new["figures"].get(name, {})
        for figure in dict.fromkeys([*before, *after]):
            was, now = before.get(figure), after.get(figure)
            if was is None or now is None:
                table.add_row(name, figure, _shown(was), _shown(now), "")
            elif abs(now - was) > _MOVED * abs(was):
                table.add_row(name, figure, _shown(was), _shown(now), f"{now / was - 1:+.0%}" if was else "")
    return table


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    sys.exit(main())
