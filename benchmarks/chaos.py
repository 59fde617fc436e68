"""Everything goes wrong, under a seed, on a real Ray cluster of two nodes: what is lost?

    python benchmarks/chaos.py [--seed N] [--faults 200] [--jobs 20] [--quick] [--json FILE]

Jobs of differing shape come as long as faults do: the orchestrator, actors and a node are killed or stopped, the job
table is locked, a bit of a checkpoint turns over, the disk is full, an output folder is deleted, clients hang up; one
or two at a time, in an order that follows from the seed. In the end every job is trained again, alone, undisturbed and
without Ray, and its adapter and its rows of metrics are compared with what came out. Exits with 1 unless nothing was
lost, different or left behind. About ten seconds a fault on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median

os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parent.parent))  # for the processes of Ray
os.environ["RAY_AUTH_MODE"] = "disabled"  # everything listens on the loopback interface, for some minutes
os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "90")  # seconds that a busy machine may take to start Ray
os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "90")
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else Ray looks for its head at an address of the network
os.environ.setdefault("RAY_worker_niceness", "0")  # a busy machine must not starve the actors
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("RAY_ADDRESS", None)

from chaos_parts.run import Result, Size, run
from common import workload

_WHOLE = Size(steps=(100, 400), live=6, longest=8.0)
_QUICK = Size(steps=(100, 200), live=3, longest=1.0)


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description="Faults of every kind, and what became of the jobs.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=20, help="at least so many")
    parser.add_argument("--quick", action="store_true", help="few and short jobs, short faults")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    arguments = parser.parse_args()
    workload.quiet()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started and mounted is put away
    size = _QUICK if arguments.quick else _WHOLE
    result = run(arguments.seed, arguments.faults, arguments.jobs, size, lambda line: print(line, flush=True))
    print(_report(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    return 1 if _what_is_wrong(result) else 0


def _what_is_wrong(result: Result) -> list[str]:
    return [*result.lost, *result.differing, *result.files, *result.processes]


def _report(result: Result) -> str:
    kinds = ", ".join(f"{count} x {kind}" for kind, count in sorted(result.faults.items()))
    named = {
        "lost": result.lost,
        "charged with a death": result.charged,
        "differing by a byte from the job alone": result.differing,
        "files left": result.files,
        "processes left": result.processes,
    }
    lines = [f"seed {result.seed}: {sum(result.faults.values())} faults ({kinds}), {result.jobs} jobs"]
    lines += [f"{what}: {len(some)}{''.join(f'{chr(10)}    {one}' for one in some)}" for what, some in named.items()]
    if result.recoveries:
        lines.append(f"recovery: median {median(result.recoveries):.1f} s, worst {max(result.recoveries):.1f} s")
    lines.append(f"optimizer steps made again: {result.redone}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
