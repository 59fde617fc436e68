"""Files that jobs from elsewhere read: sent once, kept under the SHA-256 of their content."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import BinaryIO

from aiohttp import web

from orchestrator.endpoint.errors import BAD_REQUEST, NOT_FOUND, TOO_LARGE, TOO_MANY, RequestError
from orchestrator.endpoint.references import NAME, uploads
from orchestrator.endpoint.verbs import FILES

_CHUNK = 1 << 20
_CHUNK_SECONDS = 60.0
_AT_A_TIME = 8
_MOST_FILES = 1000  # of a folder
_RESERVE = 1 << 30  # bytes that stay free on the disk
_FULL = 507


class Uploads:
    """What is sent to one orchestrator."""

    def __init__(self, storage: Path, most_bytes: int) -> None:
        """Nothing is under way.

        Args:
            storage: The storage folder of the orchestrator.
            most_bytes: Of one file or folder.
        """
        self._folder, self._most, self._open = uploads(storage), most_bytes, 0

    def add_routes(self, app: web.Application) -> None:
        """Put the handlers on their paths."""
        app.router.add_route("HEAD", f"{FILES}/{{digest}}/{{name}}", self.look)
        app.router.add_put(f"{FILES}/{{digest}}/{{name}}", self.take)

    async def look(self, request: web.Request) -> web.StreamResponse:
        """Whether a file is there; whoever asks is about to need it."""
        found = await asyncio.to_thread(_kept, self._home(request))
        return web.Response(status=200 if found else NOT_FOUND)

    async def take(self, request: web.Request) -> web.StreamResponse:
        """Take a file, or with `?folder=true` a tar file that becomes a folder. It appears whole or not at all."""
        home = self._home(request)
        size = request.content_length
        if size is None or size > self._most:
            told = "says no length" if size is None else f"has {size} bytes"
            raise RequestError(TOO_LARGE, f"{home.name} {told}; allowed: up to {self._most} (http.max_upload)")
        if self._open >= _AT_A_TIME:
            raise RequestError(TOO_MANY, f"{_AT_A_TIME} files are being sent already; try again in a while")
        self._open += 1
        try:
            await asyncio.to_thread(self._make_room, size)
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=".draft-") as draft:
                content = Path(draft, "content")
                await self._receive(request, content)
                is_folder = request.query.get("folder") == "true"
                await asyncio.to_thread(_publish, content, home, is_folder=is_folder)
        finally:
            self._open -= 1
        return web.json_response({"path": f"upload:{home.parent.name}/{home.name}"}, status=201)

    def _home(self, request: web.Request) -> Path:
        digest, name = request.match_info["digest"], request.match_info["name"]
        if not re.fullmatch("[0-9a-f]{64}", digest) or not re.fullmatch(NAME, name):
            raise RequestError(BAD_REQUEST, f"the path is not {FILES}/SHA256/NAME with a name of letters, digits, ._-")
        return self._folder / digest / name

    def _make_room(self, size: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self._folder).free < 2 * size + _RESERVE:
            raise RequestError(_FULL, f"the orchestrator's disk has no room for {size} bytes")

    async def _receive(self, request: web.Request, target: Path) -> None:
        total = hashlib.sha256()
        with target.open("wb") as file:
            while chunk := await asyncio.wait_for(request.content.read(_CHUNK), _CHUNK_SECONDS):
                await asyncio.to_thread(_append, file, chunk, total)
        if total.hexdigest() != request.match_info["digest"]:
            raise RequestError(BAD_REQUEST, "the content has another SHA-256 than its path says; send it again")


def _kept(home: Path) -> bool:
    """Whether it is there; it then stays for as long as if it had been sent now."""
    if not home.exists():
        return False
    os.utime(home.parent)
    return True


def _append(file: BinaryIO, chunk: bytes, total: hashlib._Hash) -> None:
    file.write(chunk)
    total.update(chunk)


def _publish(content: Path, home: Path, *, is_folder: bool) -> None:
    if is_folder:
        content = _unpacked(content)
    home.parent.mkdir(exist_ok=True)
    try:
        content.rename(home)
    except OSError:
        if not home.exists():  # else somebody was faster with the same content
            raise


def _unpacked(content: Path) -> Path:
    """The folder of a tar file: plain files alone, nothing outside of it, and no more than the tar file holds."""
    target = content.with_name("folder")
    target.mkdir()
    try:
        with tarfile.open(content, "r:") as tar:  # uncompressed: what comes out is no larger than what came in
            for count, entry in enumerate(tar, start=1):
                if not entry.isreg() or count > _MOST_FILES:
                    raise RequestError(BAD_REQUEST, f"a folder may hold plain files alone, at most {_MOST_FILES}")
                tar.extract(entry, target, filter="data")
    except (tarfile.TarError, ValueError) as error:
        raise RequestError(BAD_REQUEST, f"the folder is no tar file that can be used: {error}") from None
    return target
