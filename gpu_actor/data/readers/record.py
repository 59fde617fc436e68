"""One record as it is in the file."""

from __future__ import annotations

from typing import Any

from gpu_actor.contract.errors import DataError

Record = dict[str, Any]
"""The columns of one record by name."""

LONGEST_RECORD = 1 << 26
"""Most bytes (or characters) of one record: what is longer is no sample, but a file without line ends."""


class LongRecordError(DataError):
    """A record is longer than whoever reads it wants to hold in memory."""
