"""Jobs to an orchestrator that sees none of our files: what they read is sent along, once for each content."""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_actor.contract.errors import InvalidJobError
from gpu_actor.paths.urls import is_url
from orchestrator.endpoint.references import output_reference, places_read, safe_name, upload_reference
from orchestrator.jobs.job import JobSpec
from orchestrator.link.http_link import HttpLink

_SECONDS = 3600.0  # for one file
_CHUNK = 1 << 20


def send_jobs(specs: Sequence[JobSpec], link: HttpLink, request_id: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Send what jobs read.

    Args:
        specs: The jobs, their paths absolute.
        link: To the orchestrator.
        request_id: Of their submission: the same again has the same output folders.

    Returns:
        The fields of the jobs, with references in place of paths, and one line for a person.

    Raises:
        InvalidJobError: A file cannot be read.
        LorayError: It is not taken.
    """
    sent: dict[str, str] = {}
    jobs = []
    for spec in specs:
        fields = spec.model_dump(mode="json")
        for part, name in places_read(fields):
            path = part[name]
            if os.path.isabs(path) and os.path.exists(path):
                if path not in sent:
                    sent[path] = _send(Path(path), spec.name, link)
                part[name] = sent[path]
        out = spec.output_dir if is_url(spec.output_dir) else output_reference(spec.name, request_id)
        jobs.append({**fields, "output_dir": out})
    count = f"{len(sent)} file{'s' if len(sent) != 1 else ''} sent; " if sent else ""
    return jobs, [f"{count}adapters stay with the orchestrator: `loray show JOB` says where"]


def _send(path: Path, job_name: str, link: HttpLink) -> str:
    """Send a file or folder, unless it is there already; returns the reference to it."""
    try:
        with tempfile.TemporaryDirectory() as draft:
            content = _packed(path, Path(draft, "folder.tar")) if path.is_dir() else path
            digest, name = _digest(content), safe_name(path.name)
            if not link.has_file(digest, name):
                link.send_file(digest, name, content, is_folder=path.is_dir(), timeout=_SECONDS)
    except OSError as error:
        raise InvalidJobError(f"job {job_name!r}: {path} cannot be sent to {link.address}: {error}") from None
    return upload_reference(digest, name)


def _packed(folder: Path, target: Path) -> Path:
    """A folder's files as a tar file, which is the same for the same content."""
    with tarfile.open(target, "w") as tar:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = tarfile.TarInfo(file.relative_to(folder).as_posix())
            entry.size = file.stat().st_size
            with file.open("rb") as content:
                tar.addfile(entry, content)
    return target


def _digest(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total.update(chunk)
    return total.hexdigest()
