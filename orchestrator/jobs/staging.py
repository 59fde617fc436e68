"""Bringing jobs out of Ray's package folder.

`ray job submit --working-dir .` unpacks the folder below `.../working_dir_files/_ray_pkg_<hash>/`, and Ray deletes it
some time after the submitting process has ended, while the training goes on. So what a job reads from there is copied
into the storage folder first, and what it would write there goes to the storage folder instead.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_actor.contract.errors import InvalidJobError
from gpu_actor.contract.inputs import with_inputs
from gpu_actor.paths.locations import looks_like_path
from orchestrator.jobs.job import JobSpec

PACKAGES = "working_dir_files"
CHUNK = 1 << 20


def package_root(path: str) -> Path | None:
    """The unpacked Ray package that a path lies in, or None."""
    parts = Path(os.path.normpath(path)).parts
    if PACKAGES not in parts:
        return None
    end = parts.index(PACKAGES) + 2
    return Path(*parts[:end]) if len(parts) >= end else None


def stage_jobs(jobs: Sequence[JobSpec], storage: Path, outputs: str) -> tuple[list[JobSpec], list[str]]:
    """Moves what jobs have in Ray's package folder to the storage folder.

    Args:
        jobs: Jobs with absolute paths; those that have nothing in a package are returned as they are.
        storage: The storage folder of the orchestrator.
        outputs: Where results of such jobs go, a folder or a URL.

    Returns:
        The jobs to submit, and one line for a person, if anything was moved.

    Raises:
        InvalidJobError: A file cannot be copied.
    """
    copies: dict[str, str] = {}
    staged = [_stage(job, storage, outputs, copies) for job in jobs]
    moved = sum(old.output_dir != new.output_dir for old, new in zip(jobs, staged, strict=True))
    facts = []
    if moved:
        facts.append(f"adapters go below {outputs}")
    if copies:
        facts.append(f"{len(copies)} of its files were copied below {storage / 'uploads'}")
    if not facts:
        return staged, []
    return staged, [f"Ray deletes the job's working folder in the end, so {' and '.join(facts)}"]


def _stage(job: JobSpec, storage: Path, outputs: str, copies: dict[str, str]) -> JobSpec:
    def copied(path: str) -> str:
        if package_root(path) is None:
            return path
        if path not in copies:
            copies[path] = _upload(path, job.name, storage)
        return copies[path]

    changes: dict[str, Any] = {}
    if looks_like_path(job.base_model):
        changes["base_model"] = copied(job.base_model)
    root = package_root(job.output_dir)
    if root is not None:
        changes["output_dir"] = f"{outputs}/{Path(os.path.normpath(job.output_dir)).relative_to(root)}"
    return with_inputs(job, copied).model_copy(update=changes)  # a hub id is no path in a package


def _upload(path: str, job_name: str, storage: Path) -> str:
    """Copies a file or folder to where its content gives it its name; the same content is kept once."""
    source = Path(path)
    try:
        home = storage / "uploads" / _digest(source)
        target = home / source.name
        if not target.exists():
            home.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=home, prefix=".draft-") as draft:
                copy = Path(draft, source.name)
                if source.is_dir():
                    shutil.copytree(source, copy)
                else:
                    shutil.copyfile(source, copy)
                _publish(copy, target)
        os.utime(home)  # it stays for as long as if it had come now
    except OSError as error:
        raise InvalidJobError(f"job {job_name!r}: {path} cannot be copied to {storage}: {error}") from None
    return str(target)


def _publish(copy: Path, target: Path) -> None:
    """Gives a whole copy its name, unless somebody else was faster with the same content."""
    try:
        copy.rename(target)
    except OSError:
        if not target.exists():
            raise


def _digest(source: Path) -> str:
    """SHA-256 over the content of a file, or over names and contents of a folder."""
    total = hashlib.sha256()
    if not source.is_dir():
        _add(total, source)
        return total.hexdigest()
    for folder, subfolders, names in os.walk(source):
        subfolders.sort()
        for name in sorted(names):
            file = Path(folder, name)
            part = hashlib.sha256()
            _add(part, file)
            total.update(f"{file.relative_to(source)}\0{part.hexdigest()}\n".encode())
    return total.hexdigest()


def _add(digest: Any, file: Path) -> None:
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
