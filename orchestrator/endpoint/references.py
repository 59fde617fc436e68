"""What jobs from elsewhere have in place of paths: `upload:DIGEST/NAME` was sent, `output:NAME` is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.jobs.owner import OPERATOR

if TYPE_CHECKING:
    from orchestrator.cluster.cluster_config import ClusterConfig

PLACES = (
    ("dataset", "path"),
    ("dataset", "chat_template"),
    ("lora", "init_adapter"),
    ("training", "reference_adapter"),
)
"""Sections and fields of a job that name what it reads."""

NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,119}"
_UPLOAD, _OUTPUT = re.compile(rf"upload:([0-9a-f]{{64}})/({NAME})"), re.compile(rf"output:({NAME})")
_MOST_NAME = 100


def safe_name(name: str) -> str:
    """A name as a reference may have it; its end, by which a file's type is known, stays."""
    return re.sub(r"[^A-Za-z0-9._-]|^\.", "_", name)[-_MOST_NAME:].lstrip(".") or "_"


def upload_reference(digest: str, name: str) -> str:
    """The reference to what was sent."""
    return f"upload:{digest}/{name}"


def output_reference(job_name: str, request_id: str) -> str:
    """The reference to the output folder of a job that is submitted by a request."""
    return f"output:{job_name[:_MOST_NAME]}-{request_id[:8]}"


def uploads(storage: Path) -> Path:
    """Where lies what was sent."""
    return storage / "uploads"


def outputs(storage: Path, owner: str) -> Path:
    """Where results of an owner's jobs go."""
    return storage / "outputs" / owner


def resolved(job: Mapping[str, Any], storage: Path, owner: str) -> dict[str, Any]:
    """The fields of a job with paths in place of references.

    Args:
        job: As it came; whatever is no reference stays for the checks of jobs.
        storage: The storage folder of the orchestrator.
        owner: Whose it is.
    """
    fields = dict(job)
    for section, name in PLACES:
        inner = fields.get(section)
        value = inner.get(name) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping) and isinstance(value, str) and (found := _UPLOAD.fullmatch(value)):
            fields[section] = {**inner, name: str(uploads(storage) / found[1] / found[2])}
    out = fields.get("output_dir")
    if isinstance(out, str) and (found := _OUTPUT.fullmatch(out)):
        fields["output_dir"] = str(outputs(storage, owner) / found[1])
    return fields


def reach(owner: str, config: ClusterConfig) -> list[str]:
    """The folders below which everything must lie that an owner's jobs name.

    Whoever is not the operator reaches what was sent, their own results, and what the cluster file allows to all.
    """
    storage = Path(config.storage)
    if owner == OPERATOR:
        return [*config.roots, str(uploads(storage)), str(storage / "outputs")]
    return [*config.http.allowed_roots, str(uploads(storage)), str(outputs(storage, owner))]
