"""Through the HTTP door: no Ray is started, nor even imported, so that a verb answers at once and from anywhere."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from pydantic import TypeAdapter

from gpu_actor.contract.errors import ClusterUnavailableError, LorayError
from orchestrator.endpoint.verbs import VERBS, Verb, file_path
from orchestrator.link.base import POLL_SECONDS, RETRY_SECONDS
from orchestrator.validation.problems import Problem, ProblemsError

_CONNECT_SECONDS = 10.0
_FRESH_SECONDS = 20.0  # after which the other side may have closed a connection that nobody used
_CHUNK = 1 << 20


class HttpLink:
    """Calls of the verbs under /api; see `Link`."""

    def __init__(self, url: str, token: str, *, is_elsewhere: bool) -> None:
        """Connect.

        Args:
            url: Of the door, `http://host:port` or `https://...`.
            token: Who we are.
            is_elsewhere: Whether the door does not see this machine's files.

        Raises:
            ClusterUnavailableError: Nothing answers there.
        """
        self.address, self.is_elsewhere = url.rstrip("/"), is_elsewhere
        parts = urlsplit(self.address)
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._prefix = parts.netloc, parts.path
        self._headers = {"Authorization": f"Bearer {token}"}
        self._connection: http.client.HTTPConnection | None = None
        self._used_at = 0.0
        self._lock = threading.Lock()  # threads that share a client take turns
        try:
            self._connected(_CONNECT_SECONDS)
        except OSError as error:
            raise self._unreachable(error) from None

    def call(self, method: str, arguments: Sequence[Any], timeout: float, *, again: bool) -> Any:
        """See `Link`."""
        verb = VERBS[method]
        path, body = _request(verb, arguments)
        deadline = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                status, answer = self._send(verb.method, path, body, timeout, {"Content-Type": "application/json"})
            except TimeoutError:
                raise ClusterUnavailableError(
                    f"the orchestrator at {self.address} did not answer within {timeout:.0f} s"
                ) from None
            except (OSError, http.client.HTTPException) as error:
                if not again or time.monotonic() > deadline:
                    raise self._unreachable(error) from None
                time.sleep(POLL_SECONDS)
                continue
            if status >= 400 and not _tells_problems(verb, answer):
                raise self._error(status, answer)
            return TypeAdapter(verb.answer).validate_json(answer)

    def has_file(self, digest: str, name: str) -> bool:
        """Whether a file was sent before."""
        status, _ = self._send("HEAD", file_path(digest, name), None, _CONNECT_SECONDS)
        return status == 200

    def send_file(self, digest: str, name: str, content: Path, *, is_folder: bool, timeout: float) -> None:
        """Send a file, or a folder as a tar file.

        Raises:
            LorayError: It is refused.
            ClusterUnavailableError: The connection broke.
        """
        path = file_path(digest, name) + ("?folder=true" if is_folder else "")
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(content.stat().st_size)}
        try:
            status, body = self._send("PUT", path, lambda: _chunks(content), timeout, headers)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        if status >= 400:
            raise self._error(status, body)

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | Callable[[], Iterator[bytes]] | None,
        timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        with self._lock:
            connection = self._connected(timeout)
            try:
                content = body() if callable(body) else body
                connection.request(method, self._prefix + path, content, {**self._headers, **(headers or {})})
                response = connection.getresponse()
                answer = response.read()
            except BaseException:
                self._close()
                raise
            self._used_at = time.monotonic()
            return response.status, answer

    def _connected(self, timeout: float) -> http.client.HTTPConnection:
        if self._connection is not None and time.monotonic() - self._used_at > _FRESH_SECONDS:
            self._close()
        if self._connection is None:
            self._connection = self._kind(self._host, timeout=_CONNECT_SECONDS)
            try:
                self._connection.connect()
            except OSError:
                self._close()
                raise
            self._used_at = time.monotonic()
        if self._connection.sock is not None:
            self._connection.sock.settimeout(timeout)
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _unreachable(self, error: Exception) -> ClusterUnavailableError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return ClusterUnavailableError(
            f"no orchestrator answers at {self.address} ({reason}); `loray serve --http PORT` opens the door there"
        )

    def _error(self, status: int, body: bytes) -> LorayError:
        """The error that the orchestrator raised, from its JSON."""
        if status == 401:
            return ClusterUnavailableError(
                f"{self.address} does not know the token; set LORAY_TOKEN to one that `loray token add NAME` printed"
            )
        try:
            found = json.loads(body)["error"]
            kind, message, problems = str(found["type"]), str(found["message"]), found.get("problems")
        except (ValueError, KeyError, TypeError):
            return ClusterUnavailableError(f"{self.address} is no door of Loray's: it answered with status {status}")
        error = _errors_by_name().get(kind, LorayError)
        if issubclass(error, ProblemsError):
            return error([Problem(**problem) for problem in problems or ()])
        try:
            return error(message)
        except TypeError:  # it is made of more than its message
            return LorayError(message)


def _request(verb: Verb, arguments: Sequence[Any]) -> tuple[str, bytes | None]:
    """Path with query, and body, of a call."""
    values = dict(zip(verb.arguments.model_fields, arguments, strict=False))
    path = verb.path
    for name in verb.in_path:
        path = path.replace(f"{{{name}}}", quote(str(values.pop(name)), safe=""))
    if verb.has_body:
        return path, json.dumps(values).encode()
    given = {name: value for name, value in values.items() if value is not None}  # a query has no null
    return (f"{path}?{urlencode(given)}" if given else path), None


def _tells_problems(verb: Verb, answer: bytes) -> bool:
    """Whether jobs were refused, which a submission answers with and does not raise."""
    return verb.name in ("submit", "plan") and b'"problems"' in answer and b'"error"' not in answer[:10]


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _errors_by_name() -> dict[str, type[LorayError]]:
    """Every error of ours that is known here, by the name of its class."""
    found: dict[str, type[LorayError]] = {}
    left: list[type[LorayError]] = [LorayError]
    while left:
        kind = left.pop()
        found[kind.__name__] = kind
        left += kind.__subclasses__()
    return found
