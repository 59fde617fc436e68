"""What each side's program does around its training: it reads the task, waits for the word, writes what it found.

    python with_NAME.py TASK.json RESULT.json FIRST LAST THREADS VARIANT

This runs in every peer's environment, so it needs nothing but Python and torch. FIRST and LAST cut the list of jobs;
THREADS 0 are those of the task.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

Job = dict[str, Any]
Found = dict[str, Any]
"""`seconds` and `processor` seconds of training, and the `losses` of every optimizer step of every job in them."""

WARM_UP_TOKENS = 64


def run(load: Callable[[str], Any], train: Callable[[Any, list[Job], str], Iterator[Found]]) -> None:
    """Load, say so, wait until all others have loaded, train.

    Args:
        load: From the base model's folder to a model that has made one forward pass.
        train: Yields once for each job, or once for all if they are trained together.
    """
    task = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    words = os.dup(1)
    os.dup2(2, 1)  # what the libraries print is no word for the parent
    torch.set_num_threads(int(sys.argv[5]) or task["threads"])
    model = load(task["base"])
    jobs = task["jobs"][int(sys.argv[3]) : int(sys.argv[4])]
    os.write(words, b"loaded\n")
    sys.stdin.readline()
    found = [{**piece, "peak": _peak()} for piece in train(model, jobs, sys.argv[6])]
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")


class Clock:
    """Wall-clock and processor seconds between its beginning and its end.

    Attributes:
        spent: As they stand in what is `Found`.
    """

    def __enter__(self) -> Clock:
        self._started = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        wall, processor = self._started
        self.spent = {"seconds": time.perf_counter() - wall, "processor": time.process_time() - processor}


def samples(job: Job) -> list[dict[str, list[int]]]:
    """The samples of a job, in order: `input_ids` and `labels`."""
    lines = Path(job["spec"]["dataset"]["path"]).read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _peak() -> int:
    """The most memory that this process has had so far, in bytes, as the kernel counted it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
