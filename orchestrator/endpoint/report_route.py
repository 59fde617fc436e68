"""The page of `loray report` at the door: of all jobs that are the caller's, made beside the event loop, and kept."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine
from typing import Any

from aiohttp import web

from orchestrator.endpoint.errors import RequestError
from orchestrator.endpoint.protocol import Orchestrator
from orchestrator.endpoint.reading import caller_of
from orchestrator.endpoint.tokens import Caller
from orchestrator.report.contents import Contents, essential, newest

PATH = "/report"
_KEPT_SECONDS = 15.0  # that a page is given out again
_MOST_PAGES = 16  # that are kept at a time, one for each caller
_NOT_INSTALLED = 501


class _Page:
    """A page that is being made, or was made a while ago."""

    def __init__(self, making: Coroutine[Any, Any, str]) -> None:
        self._task = asyncio.get_running_loop().create_task(making)
        self._task.add_done_callback(self._done)
        self._made_at = math.inf

    def _done(self, task: asyncio.Task[str]) -> None:
        failed = task.cancelled() or task.exception() is not None
        self._made_at = -math.inf if failed else time.monotonic()

    @property
    def fresh(self) -> bool:
        """Whether it may be given to whoever comes now."""
        return time.monotonic() - self._made_at < _KEPT_SECONDS

    async def text(self) -> str:
        """The page, once it is there; several may wait for it."""
        return await asyncio.shield(self._task)


class ReportPages:
    """The pages that were made of late, by caller."""

    def __init__(self, orchestrator: Orchestrator) -> None:
        """None was made yet."""
        self._orchestrator = orchestrator
        self._pages: dict[str, _Page] = {}
        self._one_at_a_time = asyncio.Lock()

    async def handle(self, request: web.Request) -> web.Response:
        """The page for whoever asks.

        Raises:
            RequestError: What draws the charts is not installed.
        """
        caller = caller_of(request)
        page = self._pages.get(caller.name)
        if page is None or not page.fresh:
            self._pages.pop(caller.name, None)
            page = self._pages[caller.name] = _Page(self._make(caller))
            for name in list(self._pages)[:-_MOST_PAGES]:
                del self._pages[name]
        text = await page.text()
        return web.Response(text=text, content_type="text/html", headers={"Cache-Control": "no-store"})

    async def _make(self, caller: Caller) -> str:
        async with self._one_at_a_time:
            views = [view for view in await self._orchestrator.list_jobs() if caller.owns(view["owner"])]
            shown = newest(views)
            rows = {view["id"]: essential(await self._orchestrator.metrics(view["id"])) for view in shown}
            timeline = await self._orchestrator.timeline([view["id"] for view in shown])
            return await asyncio.to_thread(_render, Contents("Loray", shown, rows, timeline, len(views) - len(shown)))


def _render(contents: Contents) -> str:
    try:
        from orchestrator.report.page import render  # half a second, and nobody may ever ask
    except ModuleNotFoundError as error:
        message = f"the page needs {error.name}; `pip install 'loray[report]'` where the orchestrator runs brings it"
        raise RequestError(_NOT_INSTALLED, message) from None
    return render(contents)
