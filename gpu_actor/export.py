"""The process that makes another form of a trained adapter: `python -m gpu_actor.export`, started by `loray export`.

It reads one request (`ExportRequest` as JSON) from standard input, and writes lines of JSON: how far it is
(`{"done": bytes, "total": bytes}`), and last what was made (`Exported`), or `{"error": message}`.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict

from gpu_actor.contract.errors import LorayError
from gpu_actor.exporting.forms import export
from gpu_actor.exporting.requests import ExportRequest

_LINE_SECONDS = 0.2
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def main() -> int:
    """Make what one request asks for."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    request = ExportRequest.model_validate(json.load(sys.stdin), strict=False)
    written = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal written
        if time.monotonic() - written > _LINE_SECONDS:
            written = time.monotonic()
            print(json.dumps({"done": done, "total": total}), flush=True)

    try:
        made = export(request, progress)
    except (LorayError, OSError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
    print(json.dumps({**asdict(made), "peak_bytes": peak}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
