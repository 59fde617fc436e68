"""A real S3 server (moto's) on this machine, which can be told to refuse and to be slow."""

import contextlib
import os
import threading
import time
from unittest.mock import patch

from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "adapters"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key-of-the-tests",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
_REFUSED = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>the disk is full</Message></Error>'


class _Quiet(WSGIRequestHandler):
    def log(self, *_):
        pass


class S3Server:
    """One server with one bucket.

    Attributes:
        refuses: Says by method and path which requests are answered with 403.
        delay: Says by method and path how many seconds an answer takes.
        seen: Method and path of every request.
    """

    def __init__(self, port=0):
        from moto.server import DomainDispatcherApplication, create_backend_app

        self._app = DomainDispatcherApplication(create_backend_app)
        self.refuses = lambda method, path: False
        self.delay = lambda method, path: 0.0
        self.seen = []
        self._server = make_server("127.0.0.1", port, self._answer, threaded=True, request_handler=_Quiet)
        self.environment = environment(self._server.server_port)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, environ, start):
        asked = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.seen.append(asked)
        time.sleep(self.delay(*asked))
        if self.refuses(*asked):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(_REFUSED)))])
            return [_REFUSED]
        return self._app(environ, start)

    def well(self):
        """Refuse nothing any more, and answer at once."""
        self.refuses = lambda method, path: False
        self.delay = lambda method, path: 0.0

    def close(self):
        self._server.shutdown()


def environment(port):
    """What leads a process to the server at a port."""
    return {**ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}


@contextlib.contextmanager
def s3_server(port=0):
    """A server, and an environment that leads to it."""
    server = S3Server(port)
    try:
        with patch.dict(os.environ, server.environment):
            import fsspec

            fsspec.filesystem("s3", use_listings_cache=False).makedirs(BUCKET, exist_ok=True)
            yield server
    finally:
        server.close()
        _forget_connections()


def _forget_connections():
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
