"""What of a process's environment the orchestrator and its actors share with whoever started them."""

from __future__ import annotations

import os

_SHARED = ("LORAY_HOME", "HF_HOME", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "RAY_worker_niceness")


def shared_environment() -> dict[str, str]:
    """What of this process's environment the orchestrator and its actors get, so that all find the same models.

    Ray lowers the priority of its workers to nice 15: beside any other program they would get a thirtieth of a core.
    """
    shared = {name: os.environ[name] for name in _SHARED if name in os.environ}
    return {"RAY_worker_niceness": "0", **shared}
