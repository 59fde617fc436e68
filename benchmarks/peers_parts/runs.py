"""One run of one side: a fresh process in its own environment that trains some of the jobs of a task."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from common import loray_loop, measure, workload
from safetensors.torch import save_file

from gpu_actor.paths.locations import resolve_base_model

_HERE = Path(__file__).resolve().parent


class SideFailed(RuntimeError):
    """A side's process ended badly; the message has the end of what it said.

    Attributes:
        reason: In one line.
    """

    def __init__(self, side: str, reason: str, said: str) -> None:
        super().__init__(f"{side}: {reason}\n{said}")
        self.reason = reason


@dataclass(frozen=True)
class Side:
    """Who trains, and how.

    Attributes:
        name: For the table.
        program: A file beside this one.
        environment: A name in `ENVIRONMENTS`, or Loray's own.
        variant: What the program is told.
        together: Whether all jobs are trained together, and not one after another.
        pads_nothing: Whether it puts samples side by side, as Loray does.
        same_steps: Whether its optimizer steps are made of the samples that the others' are made of.
    """

    name: str
    program: str
    environment: str
    variant: str = ""
    together: bool = False
    pads_nothing: bool = False
    same_steps: bool = True


@dataclass(frozen=True)
class Task:
    """Jobs as every side reads them.

    Attributes:
        folder: Where the task's file is, and its runs go.
        tokens: Real tokens of each job.
        padding: Share of padding where each batch is padded to its longest sample.
    """

    folder: Path
    tokens: tuple[int, ...]
    padding: float

    @property
    def file(self) -> Path:
        """What the sides' programs are given."""
        return self.folder / "task.json"


@dataclass(frozen=True)
class Training:
    """What a process trained in one piece.

    Attributes:
        seconds: From the first batch to the last optimizer step.
        processor: Processor seconds of all threads in that time.
        losses: Of every optimizer step of every job.
        peak: The most memory of the process until then, in bytes.
    """

    seconds: float
    processor: float
    losses: list[list[float]]
    peak: int


def write_task(folder: Path, base: str, count: int, steps: int, threads: int, *, equal: bool) -> Task:
    """The data, the start values and the settings of the jobs, and the base as the oldest transformers reads it."""
    folder.mkdir(parents=True)
    model = loray_loop.load_loray(base)
    jobs = workload.make_jobs(folder, model.description.vocab_size, range(count), steps, equal=equal)
    rows = []
    for job in jobs:
        # m-LoRA clips no gradients, so nobody does
        training = job.spec.training.model_copy(update={"max_grad_norm": 0.0})
        spec = job.spec.model_copy(update={"training": training})
        start = Path(spec.output_dir).with_name("start.safetensors")
        values = loray_loop.start_adapter(model, job)
        save_file({f"base_model.model.{n}.lora_{w}.weight": t.contiguous() for (n, w), t in values.items()}, start)
        rows.append({"id": spec.job_id, "start": str(start), "spec": spec.model_dump(mode="json")})
    task = Task(folder, tuple(job.tokens for job in jobs), workload.padding_share(jobs))
    written = {"base": str(_base_for_all(base, folder)), "threads": threads, "jobs": rows}
    task.file.write_text(json.dumps(written), encoding="utf-8")
    return task


def _base_for_all(base: str, folder: Path) -> Path:
    """The base's folder with a configuration that names rotary embeddings in both ways: before 5.0, and since."""
    source = Path(resolve_base_model(base))
    shown = folder / "base"
    shown.mkdir()
    for file in source.iterdir():
        if file.name != "config.json":
            (shown / file.name).symlink_to(file.resolve())
    config = json.loads((source / "config.json").read_text("utf-8"))
    rotary = config.get("rope_parameters") or {}
    config |= {"rope_theta": rotary.get("rope_theta", 10000.0), "torch_dtype": "float32"}
    (shown / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return shown


_numbers = itertools.count()


def train(side: Side, python: str, task: Task, count: int) -> list[Training]:
    """Train the first `count` jobs in one process; a piece for each, or one for all where they are together."""
    (result,), seen = _processes(side, python, task, [(0, count)], None)
    pieces = [Training(**piece) for piece in json.loads(result.read_text("utf-8"))]
    if not side.together:
        return pieces
    # Loray's engine sets the kernel's own mark back to measure its batches: what was seen from outside counts as well
    return [replace(piece, peak=max(piece.peak, seen)) for piece in pieces]


def memory_at_once(side: Side, python: str, task: Task, count: int, threads: int) -> int:
    """Peak memory, in bytes, of `count` processes that train one job each at the same time."""
    cuts = [(number, number + 1) for number in range(count)]
    _, peak = _processes(side, python, task, cuts, max(1, threads // count))
    return peak


def _processes(
    side: Side, python: str, task: Task, cuts: Sequence[tuple[int, int]], threads: int | None
) -> tuple[list[Path], int]:
    """Run one process for each cut of the jobs, at the same time; where their results are, and their peak together."""
    run = task.folder / f"run-{next(_numbers)}"
    run.mkdir()
    results = [run / f"result-{first}.json" for first, _ in cuts]
    own: dict[str, Any] = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": ""}
    with contextlib.ExitStack() as stack, open(run / "said", "w+", encoding="utf-8") as said:
        processes = []
        for (first, last), result in zip(cuts, results, strict=True):
            command = [python, str(_HERE / side.program), str(task.file), str(result)]
            command += [str(first), str(last), str(threads or 0), side.variant]
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                cwd=run,
                env={**os.environ, **own},
            )
            processes.append(stack.enter_context(process))
        try:
            peak, _ = measure.watch(processes)
        except RuntimeError as error:
            raise SideFailed(side.name, _reason(error, processes), _end_of(said)) from error
        finally:
            for process in processes:
                process.kill()
    return results, peak


def _reason(error: RuntimeError, processes: Sequence[subprocess.Popen[str]]) -> str:
    if any(process.poll() == -signal.SIGKILL for process in processes):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return f"it was killed, most likely because this machine's {memory / 2**30:.0f} GiB of memory did not suffice"
    return str(error)


def _end_of(said: TextIO) -> str:
    said.seek(0)
    return said.read()[-3000:]
