"""Errors on their way out: a status, and a JSON object in the form of /api or of OpenAI."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from gpu_actor.contract.errors import (
    AdapterError,
    ClusterUnavailableError,
    DataError,
    IllegalTransitionError,
    JobNotFoundError,
    LorayError,
)
from gpu_actor.contract.messages import one_line
from orchestrator.jobs.owner import NotYoursError
from orchestrator.validation.problems import ProblemsError

logger = logging.getLogger("loray.endpoint")

UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT, TOO_LARGE = 401, 403, 404, 409, 413
BAD_REQUEST, UNPROCESSABLE, TOO_MANY, FAULT, UNAVAILABLE = 400, 422, 429, 500, 503


class RequestError(LorayError, ValueError):
    """A request that is refused.

    Attributes:
        status: Of the response.
        message: For people.
        param: The field that is at fault.
        code: OpenAI's word for it, if there is one.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (NotYoursError, FORBIDDEN),
    (JobNotFoundError, NOT_FOUND),
    (IllegalTransitionError, CONFLICT),
    (ClusterUnavailableError, UNAVAILABLE),
    (DataError, BAD_REQUEST),
    (AdapterError, NOT_FOUND),
    (ProblemsError, UNPROCESSABLE),
    (ValidationError, UNPROCESSABLE),
    (LorayError, BAD_REQUEST),
)
_OPENAI_TYPES = {
    UNAUTHORIZED: "authentication_error",
    FORBIDDEN: "permission_error",
    NOT_FOUND: "not_found_error",
    TOO_MANY: "rate_limit_error",
    FAULT: "server_error",
    UNAVAILABLE: "service_unavailable_error",
}


def status_of(error: Exception) -> int:
    """The status that tells of an error."""
    if isinstance(error, RequestError):
        return error.status
    if isinstance(error, web.HTTPException):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), FAULT)


def _message(error: Exception) -> str:
    if isinstance(error, web.HTTPException):
        return error.text if error.text and not error.text.startswith(f"{error.status}:") else error.reason
    if isinstance(error, LorayError):
        return str(error)
    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_url=False)
        )
    return f"the orchestrator failed on this request ({type(error).__name__}: {one_line(error)}); its log has more"


def api_error(error: Exception) -> dict[str, Any]:
    """An error as /api tells it: `type` is the name of its class, which the Python client raises again."""
    found: dict[str, Any] = {"type": type(error).__name__, "message": _message(error)}
    if isinstance(error, ProblemsError):
        found["problems"] = [asdict(problem) for problem in error.problems]
    return {"error": found}


def openai_error(error: Exception) -> dict[str, Any]:
    """An error as OpenAI's API tells it."""
    kind = _OPENAI_TYPES.get(status_of(error), "invalid_request_error")
    param = error.param if isinstance(error, RequestError) else None
    code = error.code if isinstance(error, RequestError) else None
    return {"error": {"message": _message(error), "type": kind, "param": param, "code": code}}


def response(error: Exception, path: str) -> web.Response:
    """The response that tells of an error, in the form that the path's clients read."""
    status = status_of(error)
    if status >= FAULT and not isinstance(error, LorayError):
        logger.error("a request failed", exc_info=error)
    body = openai_error(error) if path.startswith("/v1/") else api_error(error)
    # a browser that comes for the page asks a person for the token, as the password of any name
    way = 'Basic realm="Loray: any name, and your token"' if path == "/report" else "Bearer"
    headers = {"WWW-Authenticate": way} if status == UNAUTHORIZED else {}
    if status in (TOO_MANY, UNAVAILABLE):
        headers["Retry-After"] = "5"
    if isinstance(error, web.HTTPMethodNotAllowed):
        headers["Allow"] = error.headers["Allow"]
    return web.json_response(body, status=status, headers=headers)
