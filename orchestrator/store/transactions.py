"""When the job table is read and written: reads at once, writes in turn, and nobody in the event loop waits for a lock.

Another program may hold the database for a while (a backup, somebody's `sqlite3`), or the server may be away. So an
event loop takes its `turn`: a thread begins the transaction, for as long as that takes, and only what then cannot wait
any more is done in the loop. Reads see what was committed last; in SQLite's WAL mode no writer holds them up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from orchestrator.store import tables
from orchestrator.store.errors import StoreUnavailableError

logger = logging.getLogger("loray.store")

PATIENCE_SECONDS = 60.0  # that a write waits for its turn
_PAUSE_SECONDS = 0.2  # between two tries

_Result = TypeVar("_Result")


class Transactions:
    """The transactions of one database and one event loop."""

    def __init__(self, engine: sa.Engine, on_lost: Callable[[], None]) -> None:
        """None is open.

        Args:
            engine: The database.
            on_lost: Called when what was written since the last commit is lost.
        """
        self._engine, self._on_lost = engine, on_lost
        self._turn = asyncio.Lock()
        self._open: Connection | None = None  # of the turn whose work is being done
        self._afterwards: list[Callable[[], object]] = []

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """What is committed; in a turn, what that has written as well.

        Raises:
            StoreUnavailableError: The database does not answer.
        """
        with _in_words():
            if self._open is not None:
                yield self._open
            else:
                with self._engine.begin() as connection:
                    yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction of its own; in a turn, a part of that which is there whole or not at all.

        Raises:
            StoreUnavailableError: The database does not answer, or is locked.
        """
        with _in_words():
            if self._open is not None:
                with _savepoint(self._open):
                    yield self._open
            else:
                with self._engine.begin() as connection:
                    yield connection

    def afterwards(self, call: Callable[[], object]) -> None:
        """Do something once all that was written is safe: at once, or in a turn after its commit."""
        if self._open is None:
            call()
        else:
            self._afterwards.append(call)

    async def turn(self, work: Callable[[], _Result]) -> _Result:
        """Do some work in one transaction, in the order of the calls; returns when it is committed.

        What a failing work has written whole is committed all the same.

        Args:
            work: Reads and writes without any await. It is done anew if the database is lost before the commit.

        Raises:
            StoreUnavailableError: The table could not be written for `PATIENCE_SECONDS`.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        async with self._turn:
            while True:
                connection = await self._begin(deadline)
                try:
                    return self._do(connection, work)
                except StoreUnavailableError as error:
                    logger.warning("%s", error)
                    if time.monotonic() > deadline:
                        raise
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _begin(self, deadline: float) -> Connection:
        beginning = asyncio.ensure_future(asyncio.to_thread(self._wait_to_begin, deadline))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(_give_back)
            raise

    def _wait_to_begin(self, deadline: float) -> Connection:
        """A connection that may write; in a thread."""
        while True:
            try:
                return self._try_to_begin()
            except sa.exc.OperationalError as error:
                if time.monotonic() > deadline:
                    raise StoreUnavailableError(_unavailable(error)) from None
            time.sleep(_PAUSE_SECONDS)

    def _try_to_begin(self) -> Connection:
        connection = self._engine.connect()
        try:
            if self._engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:  # what would hold up a write holds this up
                names = ", ".join(sorted(tables.metadata.tables))
                connection.exec_driver_sql(f"LOCK TABLE {names} IN ROW EXCLUSIVE MODE")
        except BaseException:
            connection.close()
            raise
        return connection

    def _do(self, connection: Connection, work: Callable[[], _Result]) -> _Result:
        self._open = connection
        try:
            return _done_and_committed(connection, work)
        except StoreUnavailableError:
            self._afterwards.clear()
            self._on_lost()
            raise
        finally:
            self._open = None
            connection.close()
            afterwards, self._afterwards = self._afterwards, []
            for call in afterwards:
                call()


@contextlib.contextmanager
def _savepoint(connection: Connection) -> Iterator[None]:
    """A part of a transaction. SQLAlchemy's own compiles two statements anew each time."""
    connection.exec_driver_sql("SAVEPOINT part")
    try:
        yield
    except BaseException:
        # where the connection is gone there is nothing to take back, and what went wrong first is what counts
        with contextlib.suppress(sa.exc.DBAPIError, sa.exc.InvalidRequestError):
            connection.exec_driver_sql("ROLLBACK TO SAVEPOINT part")
            connection.exec_driver_sql("RELEASE SAVEPOINT part")
        raise
    connection.exec_driver_sql("RELEASE SAVEPOINT part")


def _done_and_committed(connection: Connection, work: Callable[[], _Result]) -> _Result:
    try:
        result = work()
    except StoreUnavailableError:
        raise  # whatever was written is lost with the connection
    except Exception:
        with _in_words():
            connection.commit()
        raise
    with _in_words():
        connection.commit()
    return result


def _give_back(beginning: asyncio.Future[Connection]) -> None:
    """A transaction began for somebody who does not wait any more."""
    if not beginning.cancelled() and beginning.exception() is None:
        beginning.result().close()


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except sa.exc.DBAPIError as error:
        if isinstance(error, sa.exc.OperationalError) or error.connection_invalidated:
            raise StoreUnavailableError(_unavailable(error)) from None
        raise


def _unavailable(error: sa.exc.DBAPIError) -> str:
    reason = str(error.orig).strip().partition("\n")[0]
    return f"the job table does not answer ({reason}); nothing was changed: ask again once its database is there"
