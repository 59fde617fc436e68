"""Whether a message is learned: OpenAI's `weight` (0 or 1) and axolotl's `train` (true or false)."""

from __future__ import annotations

from typing import Any

from gpu_actor.contract.errors import DataError
from gpu_actor.data.records import Record, shorten

WEIGHTS = ("weight", "train")


def read_weight(message: Record, role: str, field: str) -> dict[str, Any]:
    """What a message or turn says of being learned, as part of a message: `weight` 0, or nothing.

    Args:
        message: The message or turn as it is in the file.
        role: Its role; only the assistant's messages are ever learned.
        field: Where it is.

    Raises:
        DataError: It asks for what is neither 0 nor 1, for both, or for a message of another role to be learned.
    """
    wanted: set[bool] = set()
    for name in WEIGHTS:
        value = message.get(name)
        if value is None or value == "":
            continue
        if value not in (0, 1) or isinstance(value, bool) != (name == "train"):
            allowed = "true and false" if name == "train" else "0 and 1"
            raise DataError(f"{field}.{name}: must be one of {allowed}, or null, not {shorten(value)}")
        if value and role != "assistant":
            raise DataError(
                f"{field}.{name}: {shorten(value)} wants a message of the role {role} to be learned; only the "
                "assistant's are: remove it"
            )
        wanted.add(bool(value))
    if len(wanted) == 2:
        raise DataError(f"{field}: weight and train contradict each other; remove one of them")
    return {"weight": 0} if role == "assistant" and wanted == {False} else {}
