"""Requests into models: limits on size and time, and words for what does not fit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from aiohttp import web
from pydantic import ValidationError

from gpu_actor.contract.strict import Strict
from orchestrator.endpoint.errors import BAD_REQUEST, RequestError
from orchestrator.endpoint.tokens import Caller
from orchestrator.validation.field_index import dotted
from orchestrator.validation.problems import explain

BODY_BYTES = 16 * 2**20
CALLER = web.RequestKey("caller", Caller)
_BODY_SECONDS = 30.0
_AT_ONCE_BYTES = 1 << 16  # longer ones are parsed in a thread, so that they hold up nobody

Model = TypeVar("Model", bound=Strict)


def caller_of(request: web.Request) -> Caller:
    """Whose request it is."""
    return request[CALLER]


async def read_body(request: web.Request) -> bytes:
    """The body, which has to come in time.

    Raises:
        RequestError: It does not.
    """
    try:
        return await asyncio.wait_for(request.read(), _BODY_SECONDS)
    except asyncio.TimeoutError:
        raise RequestError(408, f"the body did not come within {_BODY_SECONDS:.0f} s") from None


async def read_model(request: web.Request, model: type[Model], more: Mapping[str, Any] | None = None) -> Model:
    """The body as a model.

    Args:
        request: Whose body is JSON.
        model: What it is to fit.
        more: Fields that do not stand in the body.

    Raises:
        RequestError: It does not fit; the message names the fields.
    """
    body = await read_body(request)
    if len(body) <= _AT_ONCE_BYTES:
        return _validated(model, body, more or {})
    return await asyncio.to_thread(_validated, model, body, more or {})


def _validated(model: type[Model], body: bytes, more: Mapping[str, Any]) -> Model:
    try:
        fields = json.loads(body or b"{}")
        if not isinstance(fields, dict):
            raise ValueError("it is no object")
        text = json.dumps({**fields, **more}).encode()
    except (ValueError, RecursionError) as error:
        raise RequestError(BAD_REQUEST, f"the body is not a JSON object: {error}") from None
    try:
        return model.model_validate_json(text)  # not from the parsed object: lists are no tuples to a strict model
    except ValidationError as error:
        raise refused(error, fields, model) from None


def refused(error: ValidationError, fields: Mapping[str, Any], model: type[Strict]) -> RequestError:
    """What does not fit, in words, for each field."""
    found = [(dotted(path), message) for path, message in explain(error, fields, model)]
    message = "; ".join(": ".join(filter(None, problem)) for problem in found)
    return RequestError(BAD_REQUEST, message, found[0][0] or None if found else None)
