"""The door itself: a web server in the orchestrator's event loop, which nobody enters without a token.

It must never hold up the loop, nor keep what a client has left behind: bodies, headers and idle connections have limits
on size, number and time, and what a client asked for is dropped when it goes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from orchestrator.cluster.cluster_config import HttpConfig
from orchestrator.endpoint import api_routes, errors, report_route
from orchestrator.endpoint.door_file import DoorFile, read_door_file, remove_door_file, write_door_file
from orchestrator.endpoint.openai import routes as openai_routes
from orchestrator.endpoint.openapi import openapi
from orchestrator.endpoint.protocol import Orchestrator
from orchestrator.endpoint.reading import BODY_BYTES, CALLER
from orchestrator.endpoint.references import outputs_of, resolved
from orchestrator.endpoint.tokens import Caller, TokenBook, new_token
from orchestrator.endpoint.uploads import Uploads

logger = logging.getLogger("loray.endpoint")

_MOST_CONNECTIONS = 512
_HEADER_SECONDS = 15.0  # from the connection to its first whole header
_IDLE_SECONDS = 75.0  # that a connection may wait for its next request
_PATIENCE_SECONDS = 5.0  # for a predecessor that is just dying and has the port still
_RETRY_SECONDS = 0.5
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # how this machine reaches what listens everywhere


class Door:
    """The HTTP door of one orchestrator.

    Attributes:
        url: Where it is; None as long as it is not open.
        problem: Why it is not open, in words.
        tokens: Who comes in.
    """

    def __init__(self, orchestrator: Orchestrator, config: HttpConfig, storage: Path, outputs: str) -> None:
        """Nothing is open yet. An earlier process's token and port are taken over: its clients go on.

        Args:
            orchestrator: What is behind the door.
            config: Where it is, and its limits.
            storage: Where the file lies that tells of it, and what is sent.
            outputs: Where results of jobs go that name no place here.
        """
        self._config, self._storage = config, storage
        self._earlier = read_door_file(storage)
        self._token = self._earlier.token if self._earlier else new_token()
        self.tokens = TokenBook(self._token)
        self.url: str | None = None
        self.problem: str | None = None
        app = web.Application(client_max_size=BODY_BYTES, middlewares=[self._guard])
        api_routes.add_verbs(app, orchestrator, lambda job, owner: resolved(job, storage, outputs_of(owner, outputs)))
        app.router.add_get("/openapi.json", self._describe)
        Uploads(storage, config.max_upload).add_routes(app)
        app.router.add_get(report_route.PATH, report_route.ReportPages(orchestrator).handle)
        openai_routes.add_routes(app, orchestrator, config.max_open_answers)
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,  # a small body stays small
            keepalive_timeout=_IDLE_SECONDS,
            lingering_time=2.0,
            shutdown_timeout=2.0,
        )
        self._listener: asyncio.Server | None = None
        self._silent: dict[Any, asyncio.TimerHandle] = {}  # connections that have sent no whole header yet
        self._tried = asyncio.Event()
        self._opening = asyncio.get_running_loop().create_task(self._open())

    async def tried(self) -> None:
        """Wait until it is open, or it is known why it is not."""
        await self._tried.wait()

    async def close(self) -> None:
        """Let nobody in any more, and end what is under way."""
        self._opening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._opening
        if self._listener is not None:
            self._listener.close()
            remove_door_file(self._storage)
        await self._runner.cleanup()

    # -- opening -------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        """Open it, as soon as the port is free."""
        loop = asyncio.get_running_loop()
        await self._runner.setup()
        started = loop.time()
        while True:
            try:
                listener = self._bind()
                self._listener = await loop.create_server(self._connection, sock=listener, backlog=128)
                self._tell(listener.getsockname()[1])
                break
            except OSError as error:
                if loop.time() - started > _PATIENCE_SECONDS:
                    self.problem = (
                        f"{self._config.host}:{self._config.port} cannot be opened: {error.strerror or error}"
                    )
                    self._tried.set()
            await asyncio.sleep(_RETRY_SECONDS)
        self._tried.set()

    def _bind(self) -> socket.socket:
        port = self._config.port or (urlsplit(self._earlier.url).port if self._earlier else None) or 0
        family = socket.AF_INET6 if ":" in self._config.host else socket.AF_INET
        return socket.create_server((self._config.host, port), family=family)

    def _tell(self, port: int) -> None:
        host = _LOOPBACK.get(self._config.host, self._config.host)
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        write_door_file(self._storage, DoorFile(url, self._token, os.getpid()))
        self.url, self.problem = url, None
        logger.info("the HTTP door is open at %s", url)

    # -- letting in ----------------------------------------------------------------------------------------------

    def _connection(self) -> asyncio.BaseProtocol:
        """The protocol of a new connection, which must say something soon."""
        server = self._runner.server
        if server is None:
            raise RuntimeError("the runner has no server; set it up first")
        protocol = server()
        seconds = 0.0 if len(server.connections) >= _MOST_CONNECTIONS else _HEADER_SECONDS
        self._silent[protocol] = asyncio.get_running_loop().call_later(seconds, self._drop, protocol)
        return protocol

    def _drop(self, protocol: Any) -> None:
        del self._silent[protocol]
        if protocol.transport is not None:
            protocol.transport.abort()

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Let nobody pass without a token, and turn every error into JSON."""
        if (timer := self._silent.pop(request.protocol, None)) is not None:
            timer.cancel()
        try:
            request[CALLER] = self._caller(request)
            return await handler(request)
        except Exception as error:
            return errors.response(error, request.path)

    async def _describe(self, _: web.Request) -> web.StreamResponse:
        return web.json_response(openapi())

    def _caller(self, request: web.Request) -> Caller:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "basic" and request.path == report_route.PATH:
            scheme, token = "bearer", _password(token)  # what a browser asks a person for
        caller = self.tokens.caller(token.strip()) if scheme.lower() == "bearer" else None
        if caller is None:
            raise errors.RequestError(
                errors.UNAUTHORIZED,
                "no valid token: send `Authorization: Bearer TOKEN`; `loray token add NAME` gives one to somebody",
                code="invalid_api_key",
            )
        return caller


def _password(credentials: str) -> str:
    """The password of HTTP's basic authentication; empty where there is none."""
    try:
        return base64.b64decode(credentials, validate=True).decode("utf-8").partition(":")[2]
    except ValueError:
        return ""
