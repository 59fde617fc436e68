"""Messages between two processes: JSON, with arrays as they are behind it. Nothing that is read can run code."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Sequence
from typing import Any

_LENGTH = struct.Struct("<I")
_LONGEST_HEADER = 64 << 20
_LONGEST_PART = 256 << 20

Message = dict[str, Any]
Parts = list[bytearray]


class BrokenMessageError(Exception):
    """What came is no message."""


class Channel:
    """One end of a stream socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(self, message: Message, parts: Sequence[bytes | memoryview] = ()) -> None:
        """Send a message, and the bytes that belong to it."""
        header = json.dumps({**message, "parts": [len(part) for part in parts]}).encode()
        self._end.sendall(_LENGTH.pack(len(header)) + header)
        for part in parts:
            self._end.sendall(part)

    def receive(self) -> tuple[Message, Parts] | None:
        """The next message; None at the end, also one that comes in the midst of a message.

        Raises:
            BrokenMessageError: What came is no message, or too long.
        """
        prefix = self._read(_LENGTH.size)
        if prefix is None:
            return None
        header = self._read(_within(_LENGTH.unpack(prefix)[0], _LONGEST_HEADER))
        if header is None:
            return None
        try:
            message = json.loads(header)
            lengths = [_within(int(length), _LONGEST_PART) for length in message.pop("parts")]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise BrokenMessageError(str(error)) from None
        parts = []
        for length in lengths:
            part = self._read(length)
            if part is None:
                return None
            parts.append(part)
        return message, parts

    def close(self) -> None:
        """Send and receive nothing more."""
        self._end.close()

    def _read(self, length: int) -> bytearray | None:
        content = bytearray(length)
        view, have = memoryview(content), 0
        while have < length:
            got = self._end.recv_into(view[have:])
            if not got:
                return None
            have += got
        return content


def _within(length: int, most: int) -> int:
    if not 0 <= length <= most:
        raise BrokenMessageError(f"a part of {length} bytes; allowed are {most}")
    return length
