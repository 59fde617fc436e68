"""What the start of an actor costs, part by part, without Ray: from the interpreter to the first optimizer step.

    python benchmarks/actor_start.py                        this checkout, 5 fresh processes
    python benchmarks/actor_start.py ../main . --rounds 9   two checkouts that take turns

The base model is tiny and random, so that what is left is the programs themselves. Processor seconds say more than
wall-clock seconds on a machine that others use as well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve()
PARTS = ("interpreter", "torch", "transformers", "loray", "base model", "first step")
# Packages that are heavy, that transformers imports where it finds them, and that a plain start has no use for.
OPTIONAL = ("peft", "bitsandbytes", "torch._inductor", "accelerate", "datasets", "pandas", "scipy", "sklearn", "triton")


def main() -> None:
    """Start processes in turn, and print the medians."""
    parser = argparse.ArgumentParser(description="Measure what the start of an actor costs.")
    parser.add_argument("checkouts", nargs="*", default=[str(HERE.parent.parent)], help="folders of Loray's sources")
    parser.add_argument("--rounds", type=int, default=5, help="fresh processes of each checkout")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, list[float]]]] = {checkout: [] for checkout in arguments.checkouts}
    loaded: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, HERE, "--write-base", folder], check=True, env=_environment("."))
        for _ in range(arguments.rounds + 1):  # the first one compiles and warms the page cache
            for checkout in arguments.checkouts:
                seconds, loaded[checkout] = _start(checkout, Path(folder))
                runs[checkout].append(seconds)
    results = [_summary(checkout, runs[checkout][1:], loaded[checkout]) for checkout in arguments.checkouts]
    for result in results:
        _print(result, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _environment(checkout: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(checkout).resolve()), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _start(checkout: str, folder: Path) -> tuple[dict[str, list[float]], list[str]]:
    """[wall-clock, processor] seconds of each part in one fresh process, and the optional packages that it loaded."""
    command = [sys.executable, HERE, "--start", folder, str(time.time())]
    done = subprocess.run(command, check=True, env=_environment(checkout), stdout=subprocess.PIPE, text=True)
    report = json.loads(done.stdout.splitlines()[-1])
    return report["seconds"], report["loaded"]


def _summary(checkout: str, runs: list[dict[str, list[float]]], loaded: list[str]) -> dict[str, Any]:
    for run in runs:
        run["in all"] = [sum(both) for both in zip(*run.values(), strict=True)]
    parts = {
        part: {kind: median(run[part][place] for run in runs) for place, kind in enumerate(("wall", "processor"))}
        for part in (*PARTS, "in all")
    }
    return {"checkout": checkout, "seconds": parts, "loaded": loaded}


def _print(result: dict[str, Any], rounds: int) -> None:
    loaded = ", ".join(result["loaded"]) or "none"
    print(f"{result['checkout']}, median of {rounds}; optional packages loaded: {loaded}")
    print(f"  {'seconds':<14}{'wall':>8}{'processor':>12}")
    for part, seconds in result["seconds"].items():
        print(f"  {part:<14}{seconds['wall']:>8.2f}{seconds['processor']:>12.2f}")


def start(folder: Path, begun: float) -> dict[str, Any]:
    """Run the start of an actor in this process, as `GpuActor` does it; `begun` is when its parent asked for it."""
    seconds: dict[str, list[float]] = {}
    last = [begun, 0.0]

    def done(part: str) -> None:
        now = [time.time(), time.process_time()]
        seconds[part] = [after - before for after, before in zip(now, last, strict=True)]
        last[:] = now

    done("interpreter")
    import torch

    done("torch")
    import transformers
    import transformers.models.llama.modeling_llama

    done("transformers")
    from gpu_actor.contract.config import AdapterSpec, DatasetConfig, TrainingConfig
    from gpu_actor.contract.lora_config import LoraConfig
    from gpu_actor.data.dataset import load_dataset
    from gpu_actor.model.base_model import BaseModel
    from gpu_actor.training.tenant import Tenant
    from gpu_actor.training.trainer import CoTrainer

    done("loray")
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    base = BaseModel.load(str(folder / "tiny"))
    done("base model")
    with tempfile.TemporaryDirectory() as output:
        data = Path(output, "data.jsonl")
        data.write_text('{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}\n' * 4)
        spec = AdapterSpec(
            job_id="one",
            name="one",
            base_model="tiny",
            dataset=DatasetConfig(path=str(data), format="tokens"),
            lora=LoraConfig(r=4),
            training=TrainingConfig(max_steps=2, per_device_train_batch_size=2),
            output_dir=str(Path(output, "out")),
        )
        samples = load_dataset(spec.dataset, spec.training, _no_tokenizer, 512, 2048)
        trainer = CoTrainer(base)
        trainer.attach(Tenant(spec, 1, base.new_adapter(spec.lora), samples))
        trainer.step()
    done("first step")
    return {"seconds": seconds, "loaded": [name for name in OPTIONAL if name in sys.modules]}


def _no_tokenizer() -> object:
    raise RuntimeError("pre-tokenised data need no tokenizer")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write-base"]:
        from common.workload import tiny_base

        tiny_base(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["--start"]:
        print(json.dumps(start(Path(sys.argv[2]), float(sys.argv[3]))))
    else:
        main()
