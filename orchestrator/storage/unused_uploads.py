"""What jobs from elsewhere have sent is removed once no job has needed it for a week."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_actor.contract.errors import IllegalTransitionError
from orchestrator.jobs.preflight import named_places
from orchestrator.jobs.states import TERMINAL
from orchestrator.store.records import JobRecord

if TYPE_CHECKING:
    from orchestrator.store.store import Store

logger = logging.getLogger("loray.uploads")

KEEP_SECONDS = 7 * 24 * 3600.0
_LOOK_SECONDS = 3600.0


class UnusedUploads:
    """Looks once an hour for what no job needs any more."""

    def __init__(self, store: Store, folder: Path) -> None:
        """Nothing is removed yet.

        Args:
            store: The job table.
            folder: Where lies what was sent.
        """
        self._store, self._folder = store, folder
        self._next = 0.0  # monotonic

    def look(self) -> None:
        """Look, if it is time; what is removed goes in a thread of its own."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LOOK_SECONDS
        unused = unused_uploads(self._folder, self._store.jobs(), time.time()) if self._folder.is_dir() else []
        if unused:
            logger.info("%d uploads that no job needs any more are removed", len(unused))
            threading.Thread(target=_remove, args=(unused,), name="loray-uploads", daemon=True).start()

    def check_there(self, job: JobRecord) -> None:
        """Check, before a job is retried, that what was sent for it is there still.

        Raises:
            IllegalTransitionError: It was removed.
        """
        for place in map(Path, named_places([job.spec])):
            if place.is_relative_to(self._folder) and not place.exists():
                days = round(KEEP_SECONDS / 86400)
                raise IllegalTransitionError(
                    f"job {job.name} cannot be retried: {place.name}, which was sent with it, is gone; what was sent "
                    f"is removed {days} days after the last job that reads it is over. Submit the job again, with it"
                )


def unused_uploads(folder: Path, jobs: Iterable[JobRecord], now: float) -> list[Path]:
    """What was sent and is needed no more: no job that is not over reads it, and a week ago it was not needed either.

    Args:
        folder: Where lies what was sent, by the SHA-256 of its content.
        jobs: All jobs.
        now: Unix time.
    """
    needed: dict[str, float] = {}  # until when, Unix time
    for job in jobs:
        until = now if job.state not in TERMINAL else job.finished_at or 0.0
        for place in named_places([job.spec]):
            if Path(place).is_relative_to(folder):
                name = Path(place).relative_to(folder).parts[0]
                needed[name] = max(until, needed.get(name, 0.0))
    unused = []
    for upload in folder.iterdir():
        with contextlib.suppress(OSError):  # it is just being given its name
            used = max(needed.get(upload.name, 0.0), upload.stat().st_mtime)
            if now - used > KEEP_SECONDS:
                unused.append(upload)
    return unused


def _remove(uploads: Iterable[Path]) -> None:
    for upload in uploads:
        shutil.rmtree(upload, ignore_errors=True)
