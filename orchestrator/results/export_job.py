"""A job's adapter in another form: the process that makes it, and what it says meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable

from gpu_actor.contract.errors import LorayError
from gpu_actor.exporting.requests import Exported, ExportRequest
from orchestrator.results.model_process import lines_of


def export_job(request: ExportRequest, progress: Callable[[int, int], None]) -> Exported:
    """Make what is asked for, in a process of this machine.

    Args:
        request: The job, and the wanted form.
        progress: Is told the bytes that are written, and those there are.

    Raises:
        LorayError: It cannot be made; the message says why.
    """
    for line in lines_of("gpu_actor.export", [], request.model_dump_json()):
        said = json.loads(line)
        if "error" in said:
            raise LorayError(said["error"])
        if "place" in said:
            return Exported(**said)
        progress(said["done"], said["total"])
    raise LorayError("the process that exports ended without a word")
