"""Where this node has what a job reads, and where what it writes goes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from gpu_actor.contract.config import AdapterSpec
from gpu_actor.contract.errors import InvalidJobError
from gpu_actor.contract.head_files import HeadFiles, MarkOutput
from gpu_actor.contract.inputs import with_inputs
from gpu_actor.paths.roots import outside
from gpu_actor.paths.urls import is_url
from gpu_actor.storage.head_folder import HeadFolder
from gpu_actor.storage.job_folder import JobFolder
from gpu_actor.storage.job_inputs import fetched
from gpu_actor.storage.mirror import Mirror
from gpu_actor.storage.remote_folder import RemoteFolder


@dataclass
class JobPlaces:
    """The places of one job on this node.

    Attributes:
        spec: The job, with the paths of what it reads here.
        mirror: Brings its files to where they belong; None where its output folder is one of this node.
        named: What the job calls each path here that it does not know.
    """

    spec: AdapterSpec
    mirror: Mirror | None = None
    named: dict[str, str] = field(default_factory=dict)

    def in_its_words(self, reason: str) -> str:
        """A message with the paths that the job names."""
        for here, name in self.named.items():
            reason = reason.replace(here, name)
        return reason

    def close(self) -> None:
        """Nothing comes of the job here."""
        if self.mirror is not None:
            self.mirror.close()


def find_places(spec: AdapterSpec, attempt: int, head: HeadFiles | None, roots: Sequence[str]) -> JobPlaces:
    """The places of a job; what lies elsewhere is fetched: what it reads, and the checkpoints that it goes on from.

    Args:
        spec: The job, as the orchestrator has it.
        attempt: Of the job.
        head: The way to the head node's files; None where those are this node's.
        roots: Folders below which jobs write, looked at again here: what was checked when a job was submitted may
            lead elsewhere by now.

    Raises:
        StorageError: Something cannot be fetched now; nothing was begun.
        LorayError: The job may not read or write there, or what it reads is gone.
    """
    remote = _output_elsewhere(spec, attempt, head)
    if (remote is None or is_url(spec.output_dir)) and (problem := outside(spec.output_dir, roots)):
        raise InvalidJobError(f"output_dir: {problem}")
    places = JobPlaces(spec)
    if head is not None:
        places.spec = with_inputs(spec, lambda path: _input_here(path, spec.job_id, attempt, head, places.named))
    if remote is not None:
        places.mirror = mirror_to(remote, spec)
        places.named[str(places.mirror.folder)] = spec.output_dir
    return places


def mirror_to(remote: JobFolder, spec: AdapterSpec) -> Mirror:
    """What brings a job's files to a folder elsewhere, with those that are there.

    Raises:
        StorageError: It does not answer.
    """
    mirror = Mirror(remote, spec.job_id, spec.training.save_total_limit)
    try:
        mirror.fetch()
    except BaseException:
        mirror.close()
        raise
    return mirror


def _output_elsewhere(spec: AdapterSpec, attempt: int, head: HeadFiles | None) -> JobFolder | None:
    """The output folder where that is in a bucket, or on a disk of the head node that this node does not have."""
    if is_url(spec.output_dir):
        return RemoteFolder(spec.output_dir)
    if head is None or os.path.exists(head.ask(MarkOutput(spec.job_id, attempt))):
        return None
    return HeadFolder(head, spec.job_id, attempt)


def _input_here(path: str, job_id: str, attempt: int, head: HeadFiles, named: dict[str, str]) -> str:
    if not os.path.isabs(path):
        return path  # a data set of the hub
    here = fetched(head, job_id, attempt, path)
    if here != path:
        named[here] = path
    return here
