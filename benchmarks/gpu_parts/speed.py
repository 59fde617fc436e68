"""How fast: kernels, tokens per second against PEFT, processes side by side, and the model of a step's time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.step_fit import fit as fit_steps
from torch.utils._python_dispatch import TorchDispatchMode

from .correctness import sheet_tflops
from .peer import Peer, padded
from .setting import Setting, tidy
from .work import Engine, Job, check, engine, mixed_steps, same_steps

_WARM = 2  # steps before anything is timed


class Kernels(TorchDispatchMode):
    """Counts the functions of torch that are more than another view."""

    VIEWS = ("view", "transpose", "t.", "slice", "select", "expand", "permute", "squeeze", "split", "detach", "alias")

    def __init__(self) -> None:
        """None so far."""
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one, and run it."""
        name = str(func).removeprefix("aten.")
        self.count += not any(part in name.split(".")[0] + "." for part in self.VIEWS)
        return func(*args, **(kwargs or {}))


def kernels(setting: Setting) -> None:
    """Kernels of a step for one adapter and many; and whether new lengths cost anything the first time."""
    width = 64 if setting.quick else 256
    model = setting.model(setting.medium)
    with engine(setting, model) as ours:
        counted = {}
        for adapters in (1, 4) if setting.quick else (1, 16):
            jobs = [Job(f"k{number}", same_steps([width] * 2, 3)) for number in range(adapters)]
            trainer = ours.trainer(jobs, budget=10**6)
            trainer.step()
            with Kernels() as seen:
                trainer.step()
            counted[adapters] = seen.count
        few, many = sorted(counted)
        row = {"what": "kernels", "adapters": many, "ratio": counted[many] / counted[few]}
        setting.emit({**row, "per_layer": counted[few] / len(model.model.layers)})
        _first_passes(setting, ours)


def _first_passes(setting: Setting, ours: Engine) -> None:
    """Three steps of lengths that never came before, then three of none but those: the same tokens in each."""
    longest = 64 if setting.quick else 1024
    steps = tuple(tuple(longest - 8 * place - number for place in range(6)) for number in range(6))
    trainer = ours.trainer([Job("mixed", steps), Job("mixed too", steps[::-1])], budget=10**6)
    seconds = []
    while not trainer.idle:
        started = setting.wait()
        trainer.step()
        seconds.append(setting.wait() - started)
    check(trainer)
    setting.emit({"what": "new lengths", "seconds": seconds, "second_over_fifth": seconds[1] / seconds[4]})


def speed(setting: Setting) -> None:
    """Tokens per second of the engine and of PEFT, one job after another, on the same work."""
    quick = setting.quick
    long, short, count = (48, 12, 3) if quick else (512, 128, 6)
    work = {
        "4 jobs of 4 x 512": [Job(f"l{n}", same_steps([long] * 4, count)) for n in range(4)],
        "16 jobs of 1-2 x 128": [Job(f"t{n}", same_steps([short] * (1 + n % 2), count)) for n in range(16)],
        "8 jobs of mixed lengths": [Job(f"m{n}", mixed_steps(n, 4, count, 2 * long)) for n in range(8)],
    }
    if quick:
        work = {name: jobs[:3] for name, jobs in work.items()}
    model = setting.model(setting.large)
    weights = sum(p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name)
    theirs = {name: peer_rate(setting, model, jobs) for name, jobs in work.items()}
    tidy()
    with engine(setting, model) as ours:
        for name, jobs in work.items():
            rate = engine_rate(setting, ours, jobs)
            row = {"what": f"speed, {name}", "model": setting.large, "tokens_per_s": rate, **theirs[name]}
            flops = 4 * weights * rate / 1e12  # a frozen weight: one product forward, one backward
            sheet = sheet_tflops(setting)
            setting.emit({**row, "ratio": rate / row["peft"], "tflops": flops, "mfu": flops / sheet if sheet else None})
        first = next(iter(work.values()))
        dropped = [Job(job.name + "d", job.steps, job.rank, 0.05) for job in first]
        plain, less = (engine_rate(setting, ours, jobs) for jobs in (first, dropped))
        setting.emit({"what": "dropout", "cost": plain / less - 1})


def engine_rate(setting: Setting, ours: Engine, jobs: Sequence[Job]) -> float:
    """Real tokens per second after the first steps."""
    trainer = ours.trainer(jobs)
    tokens = 0
    started = setting.wait()
    for number in range(10**6):
        if trainer.idle:
            break
        if number == _WARM:
            tokens, started = 0, setting.wait()
        trainer.step()
        tokens += trainer.batch_tokens
    seconds = setting.wait() - started
    check(trainer)
    return tokens / seconds


def peer_rate(setting: Setting, model: Any, jobs: Sequence[Job]) -> dict[str, float]:
    """Real tokens per second of PEFT, and how much of what it computes is padding; jobs are alike, two are run."""
    vocabulary = int(model.config.vocab_size)
    tokens = seconds = 0.0
    sizes = [padded(batch)["attention_mask"] for job in jobs for batch in job.samples(vocabulary)]
    for job in jobs[:2]:
        peer = Peer(setting, model, job)
        batches = job.samples(vocabulary)
        for batch in batches[:_WARM]:
            peer.step(batch)
        started = setting.wait()
        for batch in batches[_WARM:]:
            peer.step(batch)
        seconds += setting.wait() - started
        tokens += sum(len(ids) for batch in batches[_WARM:] for ids in batch)
        peer.close()
    padding = 1 - sum(int(mask.sum()) for mask in sizes) / sum(mask.numel() for mask in sizes)
    return {"peft": tokens / seconds, "padding": padding}


def processes(setting: Setting) -> None:
    """Two PEFT processes of one model at once against one engine with both jobs."""
    command = [sys.executable, str(Path(__file__).resolve().parent.parent / "gpu.py"), "--peer", setting.device]
    command += ["--quick"] if setting.quick else []
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    peers = [subprocess.Popen(command, **pipes) for _ in range(1 if setting.quick else 2)]
    try:
        for peer in peers:
            peer.stdout.readline()  # it is warm
        for peer in peers:
            peer.stdin.write("go\n")
            peer.stdin.flush()
        rates = [json.loads(peer.stdout.readline())["rate"] for peer in peers]
    finally:
        for peer in peers:
            peer.kill()
            peer.communicate()
    with engine(setting, setting.model(setting.medium)) as ours:
        rate = engine_rate(setting, ours, [_process_job(setting, str(number)) for number in range(2)])
    row = {"what": "two processes of PEFT", "model": setting.medium, "peft": sum(rates), "tokens_per_s": rate}
    setting.emit({**row, "ratio": rate / sum(rates)})


def _process_job(setting: Setting, name: str) -> Job:
    length, count = (32, 4) if setting.quick else (512, 12)
    return Job(name, same_steps([length] * 4, count))


def peer_alone(setting: Setting) -> None:
    """What one of the processes of `processes` does: say that it is warm, wait, and tell its tokens per second."""
    model, job = setting.model(setting.medium), _process_job(setting, "p")
    peer, batches = Peer(setting, model, job), job.samples(int(model.config.vocab_size))
    for batch in batches[:_WARM]:
        peer.step(batch)
    print("warm", flush=True)
    sys.stdin.readline()
    steps, started = 0, setting.wait()
    while setting.wait() - started < (0.5 if setting.quick else 8.0):
        peer.step(batches[steps % len(batches)])
        steps += 1
    rate = steps * sum(job.steps[0]) / (setting.wait() - started)
    print(json.dumps({"rate": rate}), flush=True)


def fit(setting: Setting) -> None:
    """T = a + b tokens + c adapters, fitted to measured steps."""
    samples = []
    tokens = (64, 160) if setting.quick else (256, 1024, 3072)
    with engine(setting, setting.model(setting.medium)) as ours:
        for adapters in (1, 3) if setting.quick else (1, 2, 4, 8):
            for size in tokens:
                each = max(8, size // adapters // 2)
                jobs = [Job(f"f{number}", same_steps([each] * 2, 5)) for number in range(adapters)]
                trainer = ours.trainer(jobs, budget=10**6)
                while not trainer.idle:
                    trainer.step()
                    samples += trainer.meter.take()
    a, b, c, error = fit_steps(samples)
    setting.emit(
        {
            "what": "T = a + b tokens + c adapters",
            "model": setting.medium,
            "steps": len(samples),
            "a": a,
            "b": b,
            "c": c,
            "error": error,
            "saturation_tokens": 9 * a / b if b else None,  # the fixed cost is a tenth of the step
            "crossover_tokens": a / b if b else None,  # it is half
        }
    )
