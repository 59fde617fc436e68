"""The job table of simulated histories: one real database, one engine, whose compiled statements are kept."""

import contextlib
import sqlite3
from pathlib import Path

import sqlalchemy as sa

from orchestrator.store import store as store_module
from orchestrator.store import tables
from orchestrator.store.database import open_database

_WATCH = """
CREATE TABLE transitions (job TEXT, old TEXT, new TEXT, before INTEGER, attempt INTEGER, wished TEXT, wish TEXT);
CREATE TRIGGER watch AFTER UPDATE OF state, attempt, wish ON jobs
WHEN old.state <> new.state OR old.attempt <> new.attempt OR old.wish <> coalesce(new.wish, '')
BEGIN INSERT INTO transitions VALUES (new.id, old.state, new.state, old.attempt, new.attempt, old.wish, new.wish); END;
"""


class JobTable:
    """A database in a folder, where each history finds no job, and a watch on the states and wishes of jobs."""

    def __init__(self, folder):
        self._engine = open_database(f"sqlite:///{Path(folder) / 'loray.db'}")
        self._engine.dispose()  # the connection that is there already is not among those that are watched
        self._open = []
        sa.event.listen(self._engine, "connect", self._connected)
        self._reader = sqlite3.connect(Path(folder) / "loray.db")
        self._reader.execute("PRAGMA synchronous=OFF")  # no history loses the machine
        self._reader.executescript(_WATCH)

    def _connected(self, raw, _):
        self._open.append(raw)
        raw.execute("PRAGMA busy_timeout=0")  # whoever waits for a lock does so on the simulated clock

    def begin(self, patch):
        """No job, and every store is this one."""
        names = [*tables.metadata.tables, "transitions", "sqlite_sequence"]
        for name in names:
            self._reader.execute(f"DELETE FROM {name}")
        self._reader.commit()
        patch.setattr(store_module, "open_database", lambda _: self._engine)

    def crash(self):
        """As the kernel does it: every connection ends, with whatever transaction was open there."""
        for raw in self._open:
            with contextlib.suppress(sqlite3.Error):
                raw.close()
        self._open.clear()
        self._engine.dispose()

    def rows(self, query):
        """What is committed."""
        return self._reader.execute(query).fetchall()

    def close(self):
        self.crash()
        self._reader.close()
