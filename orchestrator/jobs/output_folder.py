"""The output folder of a job, from the orchestrator's side: `job.yaml`, `metrics.jsonl`, clearing away.

It is a folder, or lies in a storage: what is asked of that may take as long as a network takes.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_actor.paths import file_names
from gpu_actor.paths.urls import is_url
from gpu_actor.storage.job_folder import StorageError
from gpu_actor.storage.mirror import remove_checkpoints, whole_steps
from gpu_actor.storage.remote_folder import RemoteFolder
from gpu_actor.storage.small_file import write_whole
from orchestrator.jobs.job import JobSpec
from orchestrator.validation.problems import Problem

logger = logging.getLogger("loray.output")

_RESULTS = (file_names.METRICS, file_names.ADAPTER_WEIGHTS, file_names.ADAPTER_CONFIG, file_names.CHECKSUMS)


def make_folders(specs: Sequence[JobSpec]) -> list[Problem]:
    """Make the output folders of jobs that are about to be accepted; says which cannot be made."""
    problems = []
    for spec in specs:
        if is_url(spec.output_dir):
            problems += _claimed(spec)
            continue
        try:
            Path(spec.output_dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"{spec.output_dir} cannot be made: {error.strerror}; choose another folder"
            problems.append(Problem(f"job {spec.name}", "output_dir", message))
    return problems


def _claimed(spec: JobSpec) -> list[Problem]:
    """Put `job.yaml` into a folder of a storage, which must be empty: whoever may not write there hears of it now."""
    remote, text = RemoteFolder(spec.output_dir), spec.to_yaml().encode()
    try:
        names = remote.names()
        ours = names == {file_names.JOB} and remote.read(file_names.JOB) == text
        if names and not ours:
            message = f"{spec.output_dir} is not empty; choose another folder, or remove this one"
            return [Problem(f"job {spec.name}", "output_dir", message)]
        remote.write(file_names.JOB, text)
    except StorageError as error:
        return [Problem(f"job {spec.name}", "output_dir", f"{error}; choose another place, or mend this one")]
    return []


def write_job_file(spec: JobSpec) -> None:
    """Write `job.yaml` whole, unless it is there; a submission and a placement may do so at once.

    In a storage it was written when the job came.
    """
    if is_url(spec.output_dir):
        return
    path = Path(spec.output_dir) / file_names.JOB
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, spec.to_yaml())


def holds_job_file(spec: JobSpec) -> bool:
    """Whether the `job.yaml` in a job's output folder is its own, field by field."""
    try:
        return (Path(spec.output_dir) / file_names.JOB).read_text(encoding="utf-8") == spec.to_yaml()
    except (OSError, UnicodeDecodeError):
        return False


def discard_checkpoints(output_dir: str) -> None:
    """Remove every checkpoint, finished or half-written; of a storage, in a thread of its own."""
    if is_url(output_dir):
        threading.Thread(target=_discard_remote, args=(output_dir,), name="loray-discard", daemon=True).start()
        return
    folder = Path(output_dir)
    for checkpoint in [*folder.glob(file_names.CHECKPOINTS), *folder.glob(file_names.CHECKPOINT_DRAFTS)]:
        shutil.rmtree(checkpoint, ignore_errors=True)


def _discard_remote(url: str) -> None:
    try:
        remove_checkpoints(RemoteFolder(url))
    except StorageError as error:
        logger.warning("checkpoints that nobody needs any more stay: %s", error)


def newest_checkpoint(output_dir: str) -> str | None:
    """Name of the checkpoint that a job goes on from, `checkpoint-<step>`; None if there is none.

    Raises:
        StorageError: The storage does not answer.
    """
    if is_url(output_dir):
        whole = whole_steps(RemoteFolder(output_dir).names())
        return file_names.checkpoint_folder(whole[-1]) if whole else None
    steps = (file_names.checkpoint_step(path.name) for path in Path(output_dir).glob(file_names.CHECKPOINTS))
    newest = max((step for step in steps if step is not None), default=None)
    return None if newest is None else file_names.checkpoint_folder(newest)


def discard_run(output_dir: str) -> None:
    """Remove all that a run has left but `job.yaml`, so that the job starts over.

    Raises:
        StorageError: The storage does not do it.
    """
    if is_url(output_dir):
        remote = RemoteFolder(output_dir)
        remove_checkpoints(remote)
        remote.remove(_RESULTS[::-1])
        return
    discard_checkpoints(output_dir)
    for path in (*(Path(output_dir) / name for name in _RESULTS), *Path(output_dir).glob(file_names.TRACKED)):
        path.unlink(missing_ok=True)


def read_metrics(output_dir: str, skip: int = 0) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl` after the first `skip`, up to a last line that is still being written.

    Raises:
        StorageError: The storage does not answer.
    """
    if is_url(output_dir):
        content = RemoteFolder(output_dir).read(file_names.METRICS) or b""
        return [json.loads(line) for line in content.splitlines()[skip:]]
    rows: list[dict[str, Any]] = []
    try:
        with (Path(output_dir) / file_names.METRICS).open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines):
                if not line.endswith("\n"):
                    break
                if number >= skip:
                    rows.append(json.loads(line))
    except (FileNotFoundError, ValueError):
        return rows
    return rows


def sampled_metrics(output_dir: str, most: int) -> list[dict[str, Any]]:
    """At most so many rows of steps and of evaluations each, evenly spread over `metrics.jsonl`, ends included.

    No more lines are parsed than are returned, so that a job of a million steps is drawn in a second.
    """
    if is_url(output_dir):
        found = read_metrics(output_dir)
        kinds = [[row for row in found if ("eval_loss" in row) is kind] for kind in (False, True)]
        few = [rows[number] for rows in kinds for number in sorted(_spread(len(rows), most))]
        return sorted(few, key=lambda row: (row["step"], "eval_loss" in row))
    path = Path(output_dir) / file_names.METRICS
    try:
        with path.open("rb") as lines:
            counts = Counter(_is_evaluation(line) for line in lines if line.endswith(b"\n"))
        wanted = {kind: _spread(count, most) for kind, count in counts.items()}
        seen: Counter[bool] = Counter()
        rows: list[dict[str, Any]] = []
        with path.open("rb") as lines:
            for line in lines:
                kind = _is_evaluation(line)
                if line.endswith(b"\n") and seen[kind] in wanted.get(kind, ()):
                    rows.append(json.loads(line))
                seen[kind] += 1
    except (FileNotFoundError, ValueError):
        return []
    return rows


def _is_evaluation(line: bytes) -> bool:
    return b'"eval_loss"' in line


def _spread(count: int, most: int) -> frozenset[int]:
    """Which of so many rows are taken."""
    if count <= most:
        return frozenset(range(count))
    return frozenset(round(number * (count - 1) / max(1, most - 1)) for number in range(most))
