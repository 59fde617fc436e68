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
from orchestrator.report.contents import MOST_JOBS, Contents, essential, newest

PATH = "/report"
_KEPT_SECONDS = 15.0  # that a page is given out again, at least
_MOST_SHARE = 0.02  # of the time, that one caller's page may be in the making: rows of hundreds of jobs are seconds
_MOST_KEPT_SECONDS = 300.0  # however long that takes, as where a storage is slow
_MOST_PAGES = 16  # that are kept at a time, one for each caller
_NOT_INSTALLED = 501


class _Page:
    """A page that is being made, or was made a while ago."""

    def __init__(self, making: Coroutine[Any, Any, tuple[str, float]]) -> None:
        self._task = asyncio.get_running_loop().create_task(making)
        self._task.add_done_callback(self._done)
        self._kept_until = math.inf

    def _done(self, task: asyncio.Task[tuple[str, float]]) -> None:
        failed = task.cancelled() or task.exception() is not None
        self._kept_until = -math.inf if failed else time.monotonic() + _kept(task.result()[1])

    @property
    def fresh(self) -> bool:
        """Whether it may be given to whoever comes now."""
        return time.monotonic() < self._kept_until

    async def text(self) -> str:
        """The page, once it is there; several may wait for it."""
        return (await asyncio.shield(self._task))[0]


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

    async def _make(self, caller: Caller) -> tuple[str, float]:
        async with self._one_at_a_time:
            began = time.monotonic()
            views = await self._orchestrator.list_jobs(MOST_JOBS + 1, caller.name)
            shown = newest(views)
            rows = {view["id"]: essential(await self._orchestrator.metrics(view["id"])) for view in shown}
            timeline = await self._orchestrator.timeline([view["id"] for view in shown])
            contents = Contents("Loray", shown, rows, timeline, left_out=len(views) > len(shown))
            return await asyncio.to_thread(_render, contents), time.monotonic() - began


def _kept(seconds: float) -> float:
    """For how long a page is given out that took so many seconds to make."""
    return min(max(_KEPT_SECONDS, seconds / _MOST_SHARE), _MOST_KEPT_SECONDS)


def _render(contents: Contents) -> str:
    try:
        from orchestrator.report.page import render  # half a second, and nobody may ever ask
    except ModuleNotFoundError as error:
        message = f"the page needs {error.name}; `pip install 'loray[report]'` where the orchestrator runs brings it"
        raise RequestError(_NOT_INSTALLED, message) from None
    return render(contents)
