"""Opening the database behind a URL: SQLite (WAL, flushed at every commit) or PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from gpu_actor.paths.private_files import private_file, private_folder
from orchestrator.store import schema
from orchestrator.store.errors import StoreError

_MEMORY = ":memory:"


def open_database(url: str) -> sa.Engine:
    """The database with every table in it, as this Loray has them: what is missing is made, what is older is changed.

    Args:
        url: As SQLAlchemy writes it, sqlite or postgresql.

    Raises:
        StoreError: It cannot be opened, or a newer Loray wrote it.
    """
    try:
        if url.startswith("sqlite"):
            path = Path(sa.make_url(url).database or _MEMORY)
            if path.name != _MEMORY:
                private_folder(path.parent)
                private_file(path)  # SQLite gives its journals the same permissions
        engine = sa.create_engine(_with_driver(url), pool_pre_ping=True)
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", _durable)
        with engine.begin() as connection:
            newer = schema.upgrade(connection)
    except ImportError as error:
        reason = f"its driver is missing ({error}); install loray[postgres]"
        raise StoreError(f"database {_without_password(url)}: {reason}") from None
    except (sa.exc.SQLAlchemyError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise StoreError(f"the job table cannot be opened: {reason}; check `database` and `storage`") from None
    if newer is not None:
        engine.dispose()
        raise StoreError(
            f"the job table {_without_password(url)} {newer}; use the Loray that wrote it, or give another `storage`"
        )
    return engine


def _with_driver(url: str) -> sa.URL:
    """The URL with the driver of loray[postgres], where it names none; SQLAlchemy 2.0 would want another."""
    parts = sa.make_url(url)
    return parts.set(drivername="postgresql+psycopg") if parts.drivername == "postgresql" else parts


def _without_password(url: str) -> str:
    return sa.make_url(url).render_as_string(hide_password=True)


def _durable(connection: Any, _: Any) -> None:
    """A commit is on the disk when it returns; readers never wait for the writer."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
