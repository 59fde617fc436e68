"""What was learned of devices, as rows of the store: a key, and values that only `knowledge.profiles` understands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from orchestrator.store import tables


def read_profiles(connection: sa.Connection) -> dict[str, dict[str, Any]]:
    """Every profile by its key."""
    rows = connection.execute(sa.select(tables.profiles.c.key, tables.profiles.c["values"]))
    return dict(rows.tuples().all())


def write_profiles(connection: sa.Connection, profiles: Mapping[str, Mapping[str, Any]]) -> None:
    """Write some profiles, each over the one that has its key."""
    for key, values in profiles.items():
        connection.execute(tables.profiles.delete().where(tables.profiles.c.key == key))
        connection.execute(tables.profiles.insert().values(key=key, values=dict(values)))


def profiles_of_earlier_runs(url: str) -> dict[str, dict[str, Any]]:
    """Every profile in a database of which nothing is made or changed; none where it cannot be read or is not there.

    Args:
        url: As SQLAlchemy writes it.
    """
    try:
        file = sa.make_url(url).database
        if url.startswith("sqlite") and not Path(file or "").is_file():
            return {}  # to connect would make it
        engine = sa.create_engine(url)
        try:
            with engine.connect() as connection:
                return read_profiles(connection)  # where the table is missing or another one, that is an error
        finally:
            engine.dispose()
    except (ImportError, OSError, sa.exc.SQLAlchemyError):
        return {}
