"""What jobs from elsewhere have in place of paths: `upload:DIGEST/NAME` was sent, `output:NAME` is written."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.jobs.owner import OPERATOR

if TYPE_CHECKING:
    from orchestrator.cluster.cluster_config import ClusterConfig

NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,119}"
_UPLOAD, _OUTPUT = re.compile(rf"upload:([0-9a-f]{{64}})/({NAME})"), re.compile(rf"output:({NAME})")
_MOST_NAME = 100


def places_read(job: Mapping[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Where a job names what it reads: each field with the part of the job that holds it, to be changed in place.

    Args:
        job: As `JobSpec` has it, or as somebody sent it: what is no text in its place is left to the checks of jobs.
    """
    data = job.get("dataset")
    mix = data.get("mix") if isinstance(data, dict) else None
    sources = [data, *(mix if isinstance(mix, list) else ())]
    places = [(source, name) for source in sources for name in ("path", "chat_template")]
    places += [(job.get("lora"), "init_adapter"), (job.get("training"), "reference_adapter")]
    return [(part, name) for part, name in places if isinstance(part, dict) and isinstance(part.get(name), str)]


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


def outputs_of(owner: str, outputs: str) -> str:
    """Where results of an owner's jobs go, below where those of all do: a folder, or a URL."""
    return f"{outputs}/{owner}"


def resolved(job: Mapping[str, Any], storage: Path, outputs: str) -> dict[str, Any]:
    """The fields of a job with paths in place of references.

    Args:
        job: As it came; whatever is no reference stays for the checks of jobs.
        storage: The storage folder of the orchestrator.
        outputs: Where results of its owner's jobs go.
    """
    fields = copy.deepcopy(dict(job))
    for part, name in places_read(fields):
        if found := _UPLOAD.fullmatch(part[name]):
            part[name] = str(uploads(storage) / found[1] / found[2])
    out = fields.get("output_dir")
    if isinstance(out, str) and (found := _OUTPUT.fullmatch(out)):
        fields["output_dir"] = f"{outputs}/{found[1]}"
    return fields


def reach(owner: str, config: ClusterConfig) -> list[str]:
    """The folders below which everything must lie that an owner's jobs read.

    Whoever is not the operator reaches what was sent, their own results, and what the cluster file allows to all.
    """
    sent = str(uploads(config.state_folder))
    if owner == OPERATOR:
        return [*config.roots, sent, config.outputs]
    return [*config.http.allowed_roots, sent, outputs_of(owner, config.outputs)]


def written(owner: str, config: ClusterConfig) -> list[str]:
    """The folders below which an owner's jobs write: what is shared is read by all, and changed by none."""
    return reach(owner, config) if owner == OPERATOR else [outputs_of(owner, config.outputs)]
