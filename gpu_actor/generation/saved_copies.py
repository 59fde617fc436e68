"""The adapter of a job whose output folder is not on this machine: a copy of it, compared with its checksums."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Collection
from pathlib import Path

from gpu_actor.contract.errors import AdapterError, DamagedFileError, LorayError
from gpu_actor.contract.head_files import FileEntry, HeadFiles
from gpu_actor.contract.questions import AskRequest, Step
from gpu_actor.generation.saved_steps import chosen
from gpu_actor.paths import file_names
from gpu_actor.paths.urls import is_url
from gpu_actor.storage.content_cache import cached
from gpu_actor.storage.head_folder import SavedOnHead
from gpu_actor.storage.mirror import whole_steps
from gpu_actor.storage.remote_folder import RemoteFolder
from gpu_actor.training.checkpoint import STATE_FILE, best_steps

_ADAPTER = (file_names.ADAPTER_CONFIG, file_names.ADAPTER_WEIGHTS)


def on_this_machine(place: str, step: Step, head: HeadFiles | None = None) -> tuple[str, Step]:
    """An output folder of this machine and a step of it; one elsewhere is copied as far as that step needs it.

    Args:
        place: The output folder of a job, or its URL.
        step: Which step.
        head: The way to the head node's files; None where those are this node's.

    Raises:
        StorageError: The storage does not answer.
        AdapterError: There is no such step, or it is damaged.
    """
    if is_url(place):
        return _copied(RemoteFolder(place), place, step)
    return (place, step) if head is None else _copied(SavedOnHead(head, place), place, step)


def with_copies(
    request: AskRequest, live: Collection[str], head: HeadFiles | None
) -> tuple[AskRequest, dict[int, LorayError]]:
    """A request whose answerers are on this machine, and why some are not, by their numbers.

    Args:
        request: What is asked.
        live: Ids of jobs in training here, whose newest steps are in no file.
        head: As in `on_this_machine`.
    """
    answerers, lacking = list(request.answerers), {}
    for number, who in enumerate(answerers):
        if who.folder is None or (who.step == "latest" and who.job_id in live):
            continue
        try:
            folder, step = on_this_machine(who.folder, who.step, head)
        except LorayError as error:
            lacking[number] = error
        else:
            answerers[number] = who.model_copy(update={"folder": folder, "step": step})
    return request.model_copy(update={"answerers": tuple(answerers)}), lacking


def _copied(remote: RemoteFolder | SavedOnHead, place: str, step: Step) -> tuple[str, Step]:
    names = remote.names()
    is_finished = {*_ADAPTER, file_names.CHECKSUMS} <= names
    if set(_ADAPTER) <= names and not is_finished:
        raise AdapterError(
            f"{place}: without {file_names.CHECKSUMS}, which Loray writes beside an adapter, no copy of it could be "
            "checked; bring it here by hand, and give that folder"
        )
    source, number = chosen(place, whole_steps(names), is_finished, lambda: _best(remote, names), step)
    there = f"{source}/" if source else ""
    here = f"{file_names.checkpoint_folder(number)}/" if number is not None else ""
    listed = remote.read(f"{there}{file_names.CHECKSUMS}") or b""
    try:
        checksums = dict(json.loads(listed))
        entries = [FileEntry(f"{here}{name}", str(checksums[name])) for name in _ADAPTER]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DamagedFileError(f"{place}/{there}{file_names.CHECKSUMS}: damaged; it lists no adapter") from None
    entries.append(FileEntry(f"{here}{file_names.CHECKSUMS}", hashlib.sha256(listed).hexdigest()))
    rows = None if here else remote.read(file_names.METRICS)  # an export shows them
    if rows is not None:
        entries.append(FileEntry(file_names.METRICS, hashlib.sha256(rows).hexdigest()))

    def fetch(name: str, file: Path) -> None:
        remote.get(there + name[len(here) :], file)

    return str(cached(entries, "adapter", fetch)), "latest" if number is None else number


def _best(remote: RemoteFolder | SavedOnHead, names: set[str]) -> set[int]:
    """The steps whose best adapters are there, and which a checkpoint names."""
    with tempfile.TemporaryDirectory() as folder:
        for step in whole_steps(names):
            name = f"{file_names.checkpoint_folder(step)}/{STATE_FILE}"
            Path(folder, name).parent.mkdir()
            remote.get(name, Path(folder, name))
        named = best_steps(Path(folder))
    return {step for step in named if f"{file_names.BEST}{step}/{file_names.CHECKSUMS}" in names}
