"""What OpenAI's clients call: /v1/models, /v1/chat/completions, /v1/completions. For judging, not for traffic."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from aiohttp import web

from gpu_actor.contract.errors import LorayError
from gpu_actor.contract.questions import Answer
from orchestrator.endpoint.errors import NOT_FOUND, RequestError, openai_error
from orchestrator.endpoint.openai.answering import AnswerWindow
from orchestrator.endpoint.openai.models import find_model, list_models
from orchestrator.endpoint.openai.replies import ChatForm, CompletionForm
from orchestrator.endpoint.openai.requests import ChatRequest, CompletionRequest
from orchestrator.endpoint.protocol import Orchestrator
from orchestrator.endpoint.reading import caller_of, read_model

_WRITE_SECONDS = 30.0  # after which a client that takes nothing has left

Request = ChatRequest | CompletionRequest
Form = ChatForm | CompletionForm


def add_routes(app: web.Application, orchestrator: Orchestrator, most_open: int) -> None:
    """Put the routes on their paths.

    Args:
        app: The server's.
        orchestrator: Whose actors answer.
        most_open: Requests that are answered at a time.
    """
    door = _OpenAi(orchestrator, most_open)
    app.router.add_get("/v1/models", door.models)
    app.router.add_get("/v1/models/{model:.+}", door.model)
    app.router.add_post("/v1/chat/completions", door.chat)
    app.router.add_post("/v1/completions", door.completion)


class _OpenAi:
    """The handlers."""

    def __init__(self, orchestrator: Orchestrator, most_open: int) -> None:
        self._orchestrator = orchestrator
        self._window = AnswerWindow(orchestrator, most_open)

    async def models(self, request: web.Request) -> web.StreamResponse:
        found = await list_models(self._orchestrator, caller_of(request))
        return web.json_response({"object": "list", "data": found})

    async def model(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["model"]
        for entry in await list_models(self._orchestrator, caller_of(request)):
            if entry["id"] == name:
                return web.json_response(entry)
        message = f"no model {name!r}; /v1/models lists those that there are"
        raise RequestError(NOT_FOUND, message, "model", "model_not_found")

    async def chat(self, request: web.Request) -> web.StreamResponse:
        wanted = await read_model(request, ChatRequest)
        return await self._answer(request, wanted, ChatForm(wanted))

    async def completion(self, request: web.Request) -> web.StreamResponse:
        wanted = await read_model(request, CompletionRequest)
        return await self._answer(request, wanted, CompletionForm(wanted))

    async def _answer(self, request: web.Request, wanted: Request, form: Form) -> web.StreamResponse:
        model = await find_model(self._orchestrator, caller_of(request), wanted.model)
        async with aclosing(self._window.answers(wanted.to_ask(model))) as states:
            if wanted.stream:
                return await _stream(request, states, form, usage=wanted.wants_usage)
            found: Sequence[Answer] = ()
            async for state in states:
                found = state
        return web.json_response(body=await asyncio.to_thread(_dump, form.whole(found)))


async def _stream(
    request: web.Request, states: AsyncIterator[Sequence[Answer]], form: Form, *, usage: bool
) -> web.StreamResponse:
    """The answers as server-sent events. What goes wrong before the first one is an error like any other."""
    before = await anext(states)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    for index in range(len(before)):
        if (first := form.first(index)) is not None:
            await _send(response, first)
    nothing = [Answer(answer.name, answer.question) for answer in before]
    try:
        for chunk in form.chunks(nothing, before):
            await _send(response, chunk)
        async for now in states:
            for chunk in form.chunks(before, now):
                await _send(response, chunk)
            before = now
        if usage:
            await _send(response, form.last(before))
    except LorayError as error:  # the status is sent already
        await _send(response, openai_error(error))
    await _write(response, b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await _write(response, b"data: " + _dump(event) + b"\n\n")


async def _write(response: web.StreamResponse, data: bytes) -> None:
    await asyncio.wait_for(response.write(data), _WRITE_SECONDS)


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
