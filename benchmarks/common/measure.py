"""Peak memory of one side, in fresh processes: `measure.py SIDE BASE JOBS...` trains and exits, its parent watches.

A group of processes needs the anonymous pages of each of them, and the pages of mapped files (the libraries, and the
weights file, which safetensors maps) once, because the kernel shares those. Both sides load the base model alike.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_SAMPLE_S = 0.02
_PATIENCE_S = 900


@dataclass(frozen=True)
class Memory:
    """Peak memory of processes that ran side by side, in bytes.

    Attributes:
        side: "loray" or "peft".
        jobs: Jobs trained.
        processes: Processes that trained them.
        peak: Largest sum, at one moment, of all anonymous pages and the mapped file pages counted once.
        resident: Sum of every process's own peak resident set, mapped files counted each time.
    """

    side: str
    jobs: int
    processes: int
    peak: int
    resident: int

    def to_dict(self) -> dict[str, object]:
        """For the JSON file."""
        return asdict(self)


def measure(side: str, base: str, jobs_of_each: Sequence[Sequence[int]], steps: int, threads: int) -> Memory:
    """Run one process per entry of `jobs_of_each` (job numbers) at the same time, and watch their memory."""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_start(side, base, jobs, steps, threads)) for jobs in jobs_of_each]
        try:
            peak, resident = watch(processes)
        finally:
            for process in processes:
                process.kill()
    return Memory(side, sum(map(len, jobs_of_each)), len(processes), peak, resident)


def _start(side: str, base: str, jobs: Sequence[int], steps: int, threads: int) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, side, base, str(steps), str(threads), *map(str, jobs)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def watch(processes: Sequence[subprocess.Popen[str]]) -> tuple[int, int]:
    """Let all train at the same time once all have loaded; the peak together, and the sum of their own peaks."""
    for process in processes:
        _expect(process, "loaded")
    for process in processes:
        _tell(process)
    peak = 0
    own = [0] * len(processes)
    deadline = time.monotonic() + _PATIENCE_S
    waiting = set(range(len(processes)))
    while waiting:
        seen = [_pages(process.pid) for process in processes]
        peak = max(peak, sum(anonymous for anonymous, _ in seen) + max(mapped for _, mapped in seen))
        own = [max(old, sum(pages)) for old, pages in zip(own, seen, strict=True)]
        waiting = {number for number in waiting if processes[number].poll() is None}
        if time.monotonic() > deadline:
            raise RuntimeError(f"a process took longer than {_PATIENCE_S} s; is the machine busy?")
        time.sleep(_SAMPLE_S)
    for process in processes:
        if process.returncode:
            raise RuntimeError(f"a process of the memory measurement ended with {process.returncode}")
    return peak, sum(own)


def _expect(process: subprocess.Popen[str], word: str) -> None:
    line = process.stdout.readline().strip() if process.stdout else ""
    if line != word:
        raise RuntimeError(f"a process of the memory measurement said {line!r} instead of {word!r}")


def _tell(process: subprocess.Popen[str]) -> None:
    if process.stdin:
        process.stdin.write("go\n")
        process.stdin.flush()


def _pages(pid: int) -> tuple[int, int]:
    """Bytes of anonymous (and shared) memory, and of mapped files, of a process; zeros when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    sizes = {key: int(value.split()[0]) * 1024 for key, value in (x.split(":", 1) for x in lines) if "Rss" in key}
    return sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0), sizes.get("RssFile", 0)


def _work(side: str, base: str, steps: int, threads: int, numbers: Sequence[int]) -> None:
    """What a measured process does."""
    sys.path.insert(0, str(Path(__file__).parents[1]))  # this file is a script of its own here
    from common import workload

    workload.set_threads(threads)
    workload.quiet()
    with tempfile.TemporaryDirectory() as folder:
        if side == "loray":
            from common import loray_loop

            model = loray_loop.load_loray(base)
            jobs = workload.make_jobs(Path(folder), model.description.vocab_size, numbers, steps)
            _wait_for_the_others()
            loray_loop.co_train(model, jobs)
        else:
            from common import peft_loop

            plain = peft_loop.load_plain(base)
            jobs = workload.make_jobs(Path(folder), plain.config.vocab_size, numbers, steps)
            _wait_for_the_others()
            for job in jobs:
                peft_loop.train_alone(plain, job)


def _wait_for_the_others() -> None:
    print("loaded", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    _work(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), [int(number) for number in sys.argv[5:]])
