"""The engine on a real card: is it right, how fast is it, and what memory does it take?

    python benchmarks/gpu.py                      all parts, about nine minutes
    python benchmarks/gpu.py --part speed         one of them; may be given several times
    python benchmarks/gpu.py --quick              tiny models, on a CPU too: does the benchmark itself work?

It wants torch, transformers, safetensors, numpy and pydantic, and no network: models have random weights of Llama's
shapes and are made on the device. PEFT is the peer where it is installed, else its arithmetic is written out.
Each result is a line of JSON; the table at the end says which gates the card passes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as an actor does, before torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without an installation

import torch
import transformers
from gpu_parts import correctness, memory, speed
from gpu_parts.gates import judged, table
from gpu_parts.setting import DeadlineError, Setting, deadline, tidy

from gpu_actor.device.cuda_process import prepare_gpu

# part -> its work, and seconds that it may take
PARTS: dict[str, tuple[Callable[[Setting], None], float]] = {
    "card": (correctness.card, 15),
    "equal": (correctness.equal, 60),
    "isolation": (correctness.isolation, 50),
    "kernels": (speed.kernels, 40),
    "speed": (speed.speed, 150),
    "processes": (speed.processes, 50),
    "fit": (speed.fit, 60),
    "memory": (memory.memory, 40),
    "oom": (memory.oom, 35),
    "nf4": (memory.nf4, 30),
}
_QUICK_STRETCH = 4  # a quick run takes seconds; on a busy machine more


def main() -> int:
    """Run the parts and print the table; 1 if one broke, or a gate did not hold."""
    arguments = _arguments()
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    device = arguments.peer or ("cuda" if torch.cuda.is_available() else "cpu")
    prepare_gpu(device)
    if arguments.peer:
        speed.peer_alone(Setting(device, arguments.quick, float("inf"), print))
        return 0
    if device == "cpu" and not arguments.quick:
        print("there is no card here; --quick tries the benchmark itself on a CPU")
        return 2
    names = arguments.part or list(PARTS)
    planned = sum(PARTS[name][1] for name in names)
    stretch = (arguments.seconds or (_QUICK_STRETCH if arguments.quick else 1) * planned) / planned
    rows: list[dict[str, Any]] = []
    broken = [name for name in names if not _run(name, device, arguments.quick, stretch, rows)]
    gates = judged(rows, on_cuda=device == "cuda")
    print(table(gates))
    if broken:
        print(f"not done: {', '.join(broken)}")
    if arguments.json:
        arguments.json.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return 1 if broken or any(passed is False for _, _, passed in gates) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the engine on a card.")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be given several times")
    parser.add_argument("--seconds", type=float, help="for all parts together; the default is 530")
    parser.add_argument("--quick", action="store_true", help="tiny models: does the benchmark itself work?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    parser.add_argument("--peer", metavar="DEVICE", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(name: str, device: str, quick: bool, stretch: float, rows: list[dict[str, Any]]) -> bool:
    """One part until its time is up; whether it came to its end."""
    work, seconds = PARTS[name]
    seconds *= stretch
    started = time.monotonic()

    def emit(row: dict[str, Any]) -> None:
        rows.append({"part": name, **row, "at_s": round(time.monotonic() - started, 1)})
        print(json.dumps(rows[-1]), flush=True)

    done = False
    try:
        with deadline(seconds):
            work(Setting(device, quick, started + seconds, emit))
        done = True
    except DeadlineError:
        emit({"what": "deadline", "seconds": seconds})
    except Exception as error:  # the next part may still work
        emit({"what": "error", "error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-2000:]})
    tidy()
    return done


if __name__ == "__main__":
    sys.exit(main())
